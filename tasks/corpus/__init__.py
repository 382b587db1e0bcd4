"""Documents and queries become examples."""
