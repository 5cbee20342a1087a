"""Importing is light: no CUDA, no transformers, no output; and the names stay the names."""

import subprocess
import sys

import lasertri


def test_importing_touches_neither_cuda_nor_transformers_and_prints_nothing():
    code = (
        "import sys, lasertri, lasertri.ops, torch; "
        "assert not torch.cuda.is_initialized(); "
        "assert not {'transformers', 'datasets', 'triton', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning:lasertri", "-c", code], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_public_name_is_there_twice():
    for _ in range(2):  # a submodule of the same name would take over after the first use
        for name in lasertri.__all__:
            assert not isinstance(getattr(lasertri, name), type(sys)), name
