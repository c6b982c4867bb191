"""Reference agents for ram_gym: run from a checkout, `python -m agents --help`."""
