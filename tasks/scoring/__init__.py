"""Influence of every document on every query, in one pass over the store."""
