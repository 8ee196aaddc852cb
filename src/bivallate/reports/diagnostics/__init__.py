"""Pictures of what a model and its training did: each a function, a frozen result, data and a figure."""
