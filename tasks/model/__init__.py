"""Loading a checkpoint and choosing its tracked layers."""
