"""Readers of public trace formats, behind one small protocol (`base`)."""
