"""Which copy of whose KV is valid where, and the copies in flight."""
