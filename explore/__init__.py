"""Questions asked of recordings: compare, report."""
