"""Training runs: configuration, trainer, checkpoints, and the folder that a run lives in."""
