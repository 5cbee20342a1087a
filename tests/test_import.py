"""Importing is light: no CUDA, no transformers, no output; and the names stay the names."""

import subprocess
import sys

import pytest

import lasertri
from lasertri.data.lm_eval import lm_eval_samples


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


def test_a_missing_extra_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)  # where another test has imported it
    with pytest.raises(lasertri.LasertriError, match=r"it is not installed .*; pip install 'lasertri\[lm-eval\]'"):
        lm_eval_samples("arc_easy")
