"""The cases reach all of `csrc/cuda`, and no sanitizer finds anything."""

import pytest

from shim.watched import SANITIZERS, coverage, run_sanitized


@pytest.mark.slow
@pytest.mark.parametrize("kind", SANITIZERS)
def test_no_sanitizer_finds_anything(kind, tmp_path):
    done = run_sanitized(kind, tmp_path / "built")
    if done is None:
        pytest.skip(f"NOT TESTED: the {kind} sanitizer does not run here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Sanitizer:" not in done.stderr, done.stderr


@pytest.mark.slow
def test_every_line_and_branch_is_reached(tmp_path):
    reached = coverage(tmp_path / "built")
    assert reached.keys() == {"block_svd.cu", "call.cuh", "eigensolver.cuh", "handles.h", "kernels.cuh"}
    assert {name: file.missed for name, file in reached.items() if file.missed} == {}
