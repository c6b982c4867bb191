"""Analysis of trained runs: evaluate, compare, probe, summarise, draw figures."""
