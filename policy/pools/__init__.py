"""Block accounting for one tier: which block ids are free, held or reserved. No tensors."""
