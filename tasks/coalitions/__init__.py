"""What each source is worth to the queries."""
