"""Threat models as values, one ascent loop, and the fence around torchattacks."""
