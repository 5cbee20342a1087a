"""The examples run as they stand and show what they say."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


def run(example, *options):
    command = [sys.executable, example, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@every_example
def test_examples_run(example):
    assert "baseline" in run(example, "--steps", "2", "--samples", "40")


@pytest.mark.slow
@every_example
def test_examples_find_what_they_are_about(example):
    printed = run(example, "--samples", "400")
    assert "held-out difference" in printed
    assert printed.count(": helps") == 1


def test_there_are_examples():
    assert EXAMPLES
