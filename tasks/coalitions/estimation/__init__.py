"""From a design of coalitions and their utilities to the values of players."""
