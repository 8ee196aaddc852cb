"""The upper level: the loss that theta descends."""
