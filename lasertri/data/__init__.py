"""Samples: what they are, where they come from, how they are split. May import `support`."""
