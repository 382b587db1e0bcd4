"""How sure a value is: intervals, resampled documents, repeated projections, trust in a game."""
