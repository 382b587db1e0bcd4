"""Per-example gradients of tracked layers, taken while back-propagating."""
