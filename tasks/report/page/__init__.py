"""Pages, figures and tables that people read."""
