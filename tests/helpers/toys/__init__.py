"""Variants that nobody needs, each as small as its kind may be: a file, and a line in a catalog."""
