"""`csrc/cuda` without a GPU: compiled by g++ against a shim of CUDA, cuBLAS, cuSOLVER and torch's stable ABI."""
