"""A run: what it depends on, what both machines share, what it leaves behind, and what its metrics mean."""
