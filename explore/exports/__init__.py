"""A recording in other tools' formats."""
