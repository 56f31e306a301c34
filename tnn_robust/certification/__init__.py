"""What no perturbation in a ball can do: lower bounds of robust accuracy."""
