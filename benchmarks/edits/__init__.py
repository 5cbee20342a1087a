"""Edits of a language model, and what they are compared with, on real tasks."""
