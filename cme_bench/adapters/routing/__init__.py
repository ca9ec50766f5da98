"""Experts behind a per-token router: the router, hooks on it, the balance loss and the statistics."""
