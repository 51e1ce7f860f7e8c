"""Reports: one self-contained HTML page for a run, a comparison, a sweep or a validation."""
