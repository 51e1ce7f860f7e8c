"""Studies: many simulations, kept by content, on one machine or on many; comparisons and sweeps."""
