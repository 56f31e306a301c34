"""Adversarial robustness of tensor neural networks (t-NNs), after arXiv 2303.00196."""

__version__ = "0.1.0"
