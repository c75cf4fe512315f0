"""The public visual benchmarks of the paper, read from their published files."""
