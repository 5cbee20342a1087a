"""The examples run as they stand and show what they say."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_find_what_they_are_about(example):
    command = [sys.executable, example, "--samples", "400"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "held-out difference" in done.stdout
    assert done.stdout.count(": helps") == 1


def test_there_are_examples():
    assert EXAMPLES
