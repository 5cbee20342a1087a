"""What a figure was measured on, written beside it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lasertri.support.environment import environment

RESULTS = Path(__file__).parent / "results"


def machine_record(*packages: str) -> dict[str, object]:
    """Devices, versions (of these packages too), threads, commit, date, and how busy the machine was."""
    return {
        **environment(),
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def write_record(
    name: str,
    figures: Mapping[str, object],
    path: Path | None = None,
    machine: Mapping[str, object] | None = None,
) -> Path:
    """Write figures and the machine's record as JSON, by default `benchmarks/results/<name>.json`.

    A long benchmark passes the `machine_record()` it took when it started: the checkout may have moved on since.
    """
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "machine": machine or machine_record(), **figures}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _commit() -> str | None:
    """The commit measured, marked where the package differs from it; None outside a checkout."""
    try:
        described = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "lasertri")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{described} with local changes" if changed else described


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()
