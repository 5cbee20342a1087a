"""Weights kept as factors: the layer, which blocks pay, its checkpoints. May import `ops` and `support`."""
