"""Stores on an S3-like object store."""
