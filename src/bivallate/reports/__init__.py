"""Reports and figures from run folders."""
