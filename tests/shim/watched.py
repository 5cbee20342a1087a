"""The cases under a sanitizer, and what of `csrc/cuda` they reach."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shim.build import build, environment

# Flags of the compiler, runtime libraries that must be there before Python, and their options.
SANITIZERS = {
    "address": (
        ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        ("libasan.so", "libubsan.so", "libstdc++.so"),
        {"ASAN_OPTIONS": "detect_leaks=0"},  # Python's own
    ),
    "thread": (("-g", "-fsanitize=thread"), ("libtsan.so",), {"TSAN_OPTIONS": "halt_on_error=1"}),
}
Done = subprocess.CompletedProcess


def run(arguments: Sequence[object], variables: Mapping[str, str]) -> Done[str]:
    command = [sys.executable, *map(str, arguments)]
    if shutil.which("setarch") and subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0:
        command = ["setarch", "-R", *command]  # ThreadSanitizer needs addresses that are not much randomised
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=False)


def run_sanitized(kind: str, folder: Path) -> Done[str] | None:
    """The cases under a sanitizer, or None where it does not run."""
    flags, libraries, options = SANITIZERS[kind]
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in libraries
    ]
    variables = {"LD_PRELOAD": " ".join(found), **options}
    if not all(Path(name).is_absolute() for name in found) or run(["-c", ""], variables).returncode:
        return None
    return run(["-m", "shim.run", build(folder, flags=flags)], variables)


class Reached(NamedTuple):
    """How many lines and branches of a file ran, of how many, and where some did not.

    Left out are branches that only an exception of a callee takes, or that the compiler made for a static variable.
    """

    lines: tuple[int, int]
    branches: tuple[int, int]
    missed: list[int]


def coverage(folder: Path) -> dict[str, Reached]:
    """By file of `csrc/cuda`, after all cases."""
    library = build(folder, flags=("-O0", "--coverage", "-Wl,--undefined=__gcov_dump"))
    done = run(["-m", "shim.run", library], {})
    assert done.returncode == 0, done.stdout + done.stderr
    command = ["gcov", "--branch-probabilities", "--json-format", "--stdout", *map(str, folder.glob("*.gcda"))]
    report = json.loads(subprocess.run(command, capture_output=True, check=True, cwd=folder).stdout)
    return {
        file["file"].rpartition("/")[2]: _reached(file["lines"], Path(folder, file["file"]))
        for file in report["files"]
        if "cuda/" in file["file"]
    }


def _reached(lines: list[dict], path: Path) -> Reached:
    """Of a line in several instances of a template, what any of them reached."""
    text = path.read_text().splitlines()
    counts: dict[int, int] = defaultdict(int)
    taken: dict[tuple[int, int], int] = defaultdict(int)
    for line in lines:
        number = line["line_number"]
        counts[number] += line["count"]
        if any(words in text[number - 1] for words in ("static const", "thread_local", "}();")):  # a static is made
            continue
        for i, branch in enumerate(branch for branch in line["branches"] if not branch["throw"]):
            taken[number, i] += branch["count"]
    missed = {number for number, count in counts.items() if not count}
    missed |= {number for (number, _), count in taken.items() if not count}
    return Reached(
        (sum(map(bool, counts.values())), len(counts)), (sum(map(bool, taken.values())), len(taken)), sorted(missed)
    )
