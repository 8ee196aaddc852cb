"""The weights w_i of the examples in the upper level."""
