"""Few numbers of the residual stream that are thousands of times larger than the rest."""
