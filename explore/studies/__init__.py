"""Systems side by side, over paired runs."""
