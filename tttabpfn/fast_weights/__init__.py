"""Fast weights: update rules, the chunk loop and the kernels under them. Needs torch alone."""
