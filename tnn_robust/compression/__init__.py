"""Low-tubal-rank truncation of trained networks."""
