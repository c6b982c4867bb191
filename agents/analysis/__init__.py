"""What is done with trained runs: evaluate, compare, probe, summarise, draw."""
