"""Bases that make a layer's gradient small."""
