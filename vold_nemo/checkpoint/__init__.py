"""A run on disk: sharded checkpoints, archives, exports, the run folder, and where a student comes from."""
