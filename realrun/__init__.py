"""The real machine: a real model, real paged KV, real copies, driven by the same policies."""
