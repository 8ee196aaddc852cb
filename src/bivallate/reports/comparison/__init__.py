"""The stored evaluations of several runs in one table."""
