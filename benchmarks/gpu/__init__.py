"""One command that proves and measures the accelerated backends on a GPU: `python -m benchmarks.gpu`."""
