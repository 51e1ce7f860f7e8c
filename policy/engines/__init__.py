"""What decides: one file an engine."""
