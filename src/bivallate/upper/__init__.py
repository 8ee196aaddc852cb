"""The upper level: the loss that theta minimises."""
