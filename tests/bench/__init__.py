"""Benchmarks: `make bench` prints every row with its limit measured in the same run."""
