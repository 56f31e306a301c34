"""What every room may import: errors, files, losses, randomness, processes, records."""
