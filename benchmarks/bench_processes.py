"""What sharing a search among processes saves, and that it changes nothing: `python -m benchmarks.bench_processes`.

The same `lasertri adapt` as one process and as several, one thread each, from the start of the search to its end. First
the figures must be the same: accuracy and log loss of every trial and held out, and the p-value. As many free cores as
processes are needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.record import machine_record, write_record
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples

KINDS = {"step": ["--edit", "step"], "truncate": ["--edit", "truncate"]}


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder; by default the demo's.")] = str(MODEL_DIR),
    data: Annotated[Path | None, typer.Option(help="Samples, jsonl; by default the demo's.")] = None,
    processes: Annotated[str, typer.Option(help="How many, beside one alone.")] = "2",
    kinds: Annotated[str, typer.Option(help="Kinds of edit.")] = ",".join(KINDS),
    delimiter: Annotated[str, typer.Option(help="See lasertri adapt.")] = " ",
    held_out: Annotated[int, typer.Option(help="Samples held out, at most.")] = 400,
) -> None:
    """Measure, compare, print and record."""
    machine, rows = machine_record(), []
    with tempfile.TemporaryDirectory() as folder:
        path = data or _demo_data(Path(folder))
        given = [model, "--data", str(path), "--delimiter", delimiter, "--held-out-limit", str(held_out)]
        for kind in kinds.split(","):
            alone = None
            for count in (1, *map(int, processes.split(","))):
                found = adapted([*given, *KINDS[kind]], count, Path(folder) / f"{kind} {count}")
                alone = alone or found
                if _figures(found) != _figures(alone):
                    raise SystemExit(f"{kind}: {count} processes find other figures than one")
                seconds = found["seconds_by_phase"]
                rows.append(
                    {"model": Path(model).name, "kind": kind, "processes": count, "seconds": found["seconds"]}
                    | {"speedup": alone["seconds"] / found["seconds"], "seconds_by_phase": seconds}
                )
                phases = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
                typer.echo(f"{kind:9} {count} processes {found['seconds']:8.1f} s ({phases})")
    write_record("bench_processes", {"rows": rows}, machine=machine)


def adapted(given: list[str], processes: int, out: Path) -> dict[str, Any]:
    """The summary of one run, without a cache of factors."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    subprocess.run(
        [
            sys.executable,
            *(launcher if processes > 1 else []),
            "-m",
            "lasertri",
            "adapt",
            *given,
            "--no-progress",
            "-o",
            str(out),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "LASERTRI_CACHE": str(out.with_name(f"cache of {out.name}"))},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    summary: dict[str, Any] = json.loads((out / "adaptation.json").read_text(encoding="utf-8"))
    return summary


def _figures(summary: dict[str, Any]) -> object:
    """What must be the same, to the last digit."""
    measured = [*summary["trials"], *(summary["held_out"][name] for name in ("baseline", "edited"))]
    return [each and (each["accuracy"], each["log_loss"]) for each in measured], summary["p_value"]


def _demo_data(folder: Path) -> Path:
    path = folder / "demo.jsonl"
    rows = [{"prompt": sample.prompt, "completion": sample.completion} for sample in samples(500, seed=1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    typer.run(main)
