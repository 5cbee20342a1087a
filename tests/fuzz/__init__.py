"""Rows, options, edits, checkpoints, caches and calls of ops, made up or damaged: each is read right or refused.

`python -m tests.fuzz --cases 10000` runs them; a case is made from its kind and number alone, so that
`python -m tests.fuzz --case rows:17` runs it again.
"""
