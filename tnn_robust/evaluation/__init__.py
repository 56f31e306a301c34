"""Adversarial risks, their intervals and the adversarial generalization gap."""
