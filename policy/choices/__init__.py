"""Small, replaceable decisions of the ranked engine: one file a family, made from names by catalog.py."""
