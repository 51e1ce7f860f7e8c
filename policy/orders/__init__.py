"""Who is served first. One order per file; `catalog` names them."""
