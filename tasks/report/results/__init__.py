"""What a valuation says and leaves in its results folder."""
