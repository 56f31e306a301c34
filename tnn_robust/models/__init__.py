"""t-product layers, the t-NN and its checkpoint."""
