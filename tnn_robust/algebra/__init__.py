"""Pure functions of tensors: transforms, t-product, t-SVD, ranks and norms."""
