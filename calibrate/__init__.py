"""Cost profiles: what a machine's steps and copies cost, with where each number comes from."""
