"""Workloads made from fitted laws and a seed."""
