"""The lower level: argmax over delta in C(x) of objective(theta, delta; x, y)."""
