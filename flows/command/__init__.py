"""The command line: its commands, options and help, and what a terminal shows."""
