"""A valuation in MLflow."""
