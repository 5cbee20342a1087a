"""A model from outside: read and written, its architecture, its matrices. May import `factored` and those before."""
