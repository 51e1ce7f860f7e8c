"""The paper's claims, ours beside theirs."""
