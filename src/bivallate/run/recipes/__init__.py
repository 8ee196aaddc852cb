"""The training recipes of the papers and of the public code of the baselines."""
