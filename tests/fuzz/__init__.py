"""Rows, options, edits, checkpoints and calls of ops, made up and damaged: each is read right or refused in a sentence.

`python -m tests.fuzz --cases 10000` runs them; a case is made from its kind and number alone, so that
`python -m tests.fuzz --case rows:17` runs it again.
"""
