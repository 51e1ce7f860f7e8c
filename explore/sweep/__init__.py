"""Parameter sweeps: many scenarios, kept by content, on one machine or on many."""
