"""Causal nets: parameters of each entry given those before it, all at once or entry by entry."""
