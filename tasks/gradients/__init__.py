"""Projected gradients of a corpus, shard by shard."""
