"""What every run does besides its work: turns, cancelling, interrupts, dead runs, events, permissions."""
