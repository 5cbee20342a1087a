"""Triton kernels, each with the function that launches it: the products of `ops/products.py`, fused."""
