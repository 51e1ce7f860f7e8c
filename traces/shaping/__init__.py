"""Workloads out of workloads."""
