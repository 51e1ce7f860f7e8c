"""Speed and scale, each a script that prints a table and a last line of JSON."""
