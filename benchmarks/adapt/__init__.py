"""Adapting a model end to end, beside what the papers' algorithms take in plain torch and transformers."""
