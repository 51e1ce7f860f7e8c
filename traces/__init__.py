"""What comes in (workloads, scenarios, seeded draws) and what goes out (recordings, metrics)."""
