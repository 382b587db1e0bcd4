"""The Hessian of the training loss in the projected space, and its damped inverse."""
