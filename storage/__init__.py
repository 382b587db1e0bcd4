"""Stores: arrays and tables on disk, and the guarantees they keep. Knows nothing of models."""
