"""The tests, the dense references and the benches."""
