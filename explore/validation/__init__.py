"""A prediction beside what was measured."""
