"""Profiles of machines that others have measured, or that nobody has: from op tables, whole-step times,
or a data sheet and a model's `config.json`."""
