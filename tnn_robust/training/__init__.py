"""Training loop, constraints and regularisers."""
