"""What is in a workload."""
