"""delta*(theta) as a function of theta: the gradient that passes through the lower level."""
