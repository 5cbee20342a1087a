"""`python -m tests.shim address`, `thread` or `coverage`: the cases under a sanitizer, or what they reach."""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from shim.watched import SANITIZERS, coverage, run_sanitized

parser = argparse.ArgumentParser(prog="python -m tests.shim", description=__doc__)
parser.add_argument("what", choices=[*SANITIZERS, "coverage"])
what = parser.parse_args().what
with tempfile.TemporaryDirectory() as folder:
    if what == "coverage":
        for name, file in coverage(Path(folder) / "built").items():
            (lines, of_lines), (branches, of_branches) = file.lines, file.branches
            print(f"{name}: {lines} of {of_lines} lines, {branches} of {of_branches} branches", *file.missed)
    else:
        done = run_sanitized(what, Path(folder) / "built")
        print("it does not run here" if done is None else done.stdout + done.stderr + f"exit code {done.returncode}")
