"""Several simulated engines behind a router, on one clock."""
