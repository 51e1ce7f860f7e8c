"""Search: the point of a space that serves best, by recipes that users know by name."""
