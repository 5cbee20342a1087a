"""Factors of weight matrices, made once, kept in memory and on disk. May import `model` and those before."""
