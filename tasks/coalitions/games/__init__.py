"""Games over sources: what a coalition is worth to the queries. One file a game."""
