"""Compiles `csrc/cuda` for the shim: g++ alone, on a copy without its includes of CUDA and torch and with its launches
written as calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique")


class Mutation(NamedTuple):
    """A mistake to be planted: in a file, a text that is there once, and what takes its place."""

    file: str
    right: str
    wrong: str


# pattern, what takes its place, and how often it is there in all files
REWRITES = (
    (r"#include <(cu|torch/).*>", "", None),
    (r"(\w+(?:<[\w, ]+>)?)<<<(.*?)>>>\(", r"shim::launch(\1, \2, ", 7),
    (r"constexpr int64_t kPanelElements = .*;", "const int64_t& kPanelElements = panel_elements;", 1),
    (r"constexpr int kThreads = 256;", "constexpr int kThreads = 32;", 1),  # quicker, and small matrices make them loop
    (r"\((count \* .*) \+ 255\) / 256 \* 256;", r"shim::piece(piece, \1);", 1),  # of an arena
)


def rewrite(folder: Path, mutations: Iterable[Mutation] = ()) -> None:
    """Write the sources into a folder, line for line."""
    (folder / "cuda").mkdir(parents=True)
    sources = [CSRC / "block_svd.h", *sorted((CSRC / "cuda").iterdir())]
    texts = {path.relative_to(CSRC): path.read_text() for path in sources}
    for file, right, wrong in mutations:
        text = texts[Path(file)]
        assert text.count(right) == 1, f"{right!r} is {text.count(right)} times in {file}"
        texts[Path(file)] = text.replace(right, wrong)
    for pattern, replacement, expected in REWRITES:
        found = 0
        for name, text in texts.items():
            texts[name], count = re.subn(pattern, replacement, text)
            found += count
        assert expected in (None, found), f"{pattern} is {found} times in csrc/cuda, not {expected}"
    for name, text in texts.items():
        (folder / name).write_text(text)


def why_not() -> str | None:
    """Why the shim cannot be built here, or None."""
    if shutil.which("g++") is None:
        return "no g++ here"
    return None if sys.platform == "linux" else f"it needs Linux, this is {sys.platform}"


def build(folder: Path, mutations: Iterable[Mutation] = (), flags: Sequence[str] = ()) -> Path:
    """The library for the shim, in a new folder."""
    rewrite(folder, mutations)
    library = folder / "shim.so"
    command = ["g++", *FLAGS, *flags, "-I", str(folder), str(HERE / "shim.cpp"), "-o", str(library), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return library


def environment(**variables: str) -> dict[str, str]:
    """Of a process that runs `python -m shim.run`."""
    paths = [ROOT, ROOT / "tests", ROOT / "benchmarks", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(path) for path in paths if str(path)), **variables}
