"""The one definition of each metric, from the tables of a recording."""
