"""What comes in: workloads, their readers and generators, seeded draws."""
