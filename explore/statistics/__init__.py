"""What may be said of several runs: warm-up, how many runs are enough, families of comparisons."""
