"""What adapting takes from end to end, route by route on one model: `python -m benchmarks.adapt --model demo`.

On a GPU, `--model gptj-6b` has GPT-J-6B's shape in BF16 with random weights. The paper's algorithm in plain torch is
left out there: it takes 224 SVDs of 4096 columns to score alone.

Every route gets the same model, samples, threads and grid (the paper's 9 ratios, K = 1, 2, 4, 8, the 5 best matrices).
Seconds are of the search: encoding, preflight and the held-out report of `adapt` are recorded beside it. Peak memory is
over what was resident before. Sample forwards count as in the paper: one for every sample that a trial reads, one for
every sample of the baseline, and 2.41 for a sample's gradient.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, TypeVar

import torch
import typer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.adapt import plain, random_gptj
from benchmarks.adapt.deep_recall import deep_recall
from benchmarks.memory import MIB, peak
from benchmarks.record import machine_record, write_record
from lasertri import Adaptation, Sample, adapt, load_model, load_tokenizer
from lasertri.demo import MODEL_DIR, recall
from lasertri.edit.candidate import Candidate
from lasertri.model.architectures import layer_paths
from lasertri.model.loading import checkpoint_files
from lasertri.model.targets import Target
from lasertri.search.round import Round
from lasertri.search.settings import BLOCK_COUNTS
from lasertri.search.strategies import LASER_RATIOS

T = TypeVar("T")
MODELS = ("demo", "deep", "random")
GPU_MODEL = "gptj-6b"
SAMPLES, COUNT = 100, 5
GRADIENT = 2.41  # sample forwards that one sample's gradient counts for in the paper
SEED, HELD_OUT_SEED, SECOND_SEED = 1, 2, 3


@dataclass(frozen=True)
class Case:
    """A model and its task; `laser` limits what of LASER is measured, and `paper` is whether the plain route is."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    samples: Callable[[int, int], list[Sample]]
    files: Sequence[Path]
    laser: dict[str, int]
    paper: bool = True

    @classmethod
    def make(cls, name: str) -> Case:
        laser = {"limit": 36, "sample_limit": 100} if name == "demo" else {"limit": 18, "sample_limit": 20}
        if name == GPU_MODEL:
            model = random_gptj.make_model(28, 4096, 16, dtype=torch.bfloat16, device="cuda")
            laser = {"limit": 4, "sample_limit": 20}
            return cls(model, random_gptj.make_tokenizer(), random_gptj.make_samples, (), laser, paper=False)
        if name == "random":
            return cls(random_gptj.make_model(), random_gptj.make_tokenizer(), random_gptj.make_samples, (), laser)
        folder = MODEL_DIR if name == "demo" else deep_recall()
        return cls(load_model(folder), load_tokenizer(folder), recall.samples, checkpoint_files(folder), laser)


def main(
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}, or all; on a GPU {GPU_MODEL}.")] = "demo",
    trials: Annotated[int | None, typer.Option(help="Candidates of the plain route measured; all by default.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    race: Annotated[bool, typer.Option(help="Also the routes that race, which take long without an effect.")] = True,
    output: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
) -> None:
    """Measure, check, print and record."""
    if model not in (*MODELS, GPU_MODEL, "all"):
        raise typer.BadParameter(f"expected one of {[*MODELS, GPU_MODEL, 'all']}, got {model!r}", param_hint="--model")
    if model == GPU_MODEL and not torch.cuda.is_available():
        raise typer.BadParameter(f"expected a CUDA device for {GPU_MODEL}, torch sees none", param_hint="--model")
    torch.set_num_threads(threads)
    agreed = True
    for name in MODELS if model == "all" else (model,):
        machine = machine_record()
        figures = compare(Case.make(name), trials, race=race)
        name = f"bench_adapt_{name}"
        path = write_record(name, figures, None if output is None else output / f"{name}.json", machine)
        typer.echo(f"{name}, {threads} threads\n{table(figures['rows'])}")
        typer.echo(notes(figures))
        typer.echo(path)
        agreed &= figures["check"]["agrees"]
    if not agreed:
        raise typer.Exit(1)


def compare(case: Case, trials: int | None = None, *, race: bool = True) -> dict[str, object]:
    """All routes, and whether the plain one and lasertri's full grid find the same."""
    samples = case.samples(SAMPLES, SEED)
    context = case.model, case.tokenizer, samples
    rows: list[dict[str, object]] = []

    def row(route: str, seconds: float, forwards: float, use: dict[str, float], **more: object) -> None:
        rows.append({"route": route, "seconds": seconds, "sample_forwards": forwards, **use, **more})
        typer.echo(f"{route}: {seconds:.2f} s of search, {use['cpu_share']:.0%} on a CPU", err=True)

    passes, use = measured(lambda: plain.floor(*context))
    least = passes["gradient"] + passes["forward"]
    row("floor", least, (1 + GRADIENT) * SAMPLES, use, passes=passes)

    laser, use = measured(lambda: plain.laser_trials(*context, **case.laser))
    for whole in laser["extrapolated"]:
        forwards = (whole["candidates"] + 1) * whole["samples"]
        row(f"(a) LASER, {whole['samples']}", whole["seconds"], forwards, use, extrapolated=True)

    if case.paper:
        paper, use = measured(lambda: plain.paper_search(*context, count=COUNT, limit=trials))
        forwards = (paper["candidates"] + 1 + GRADIENT) * SAMPLES
        row("(b) paper", paper["seconds"]["all"], forwards, use, extrapolated=paper["extrapolated"], phases=paper)

    def lasertri(route: str, task: Sequence[Sample], race: bool, **settings: object) -> Adaptation:
        result, use = measured(lambda: adapted(case, task, race=race, **settings))
        found = result.rounds[0]
        read = sum(trial.measurement.n for trial in found.trials)
        seconds = sum(result.seconds.get(phase, 0.0) for phase in ("factor", "score", "trials"))
        forwards = read + (1 + GRADIENT) * SAMPLES
        row(route, seconds, forwards, use, phases=result.seconds, trials=len(found.trials))
        return result

    with cache():
        full = lasertri("(c) full grid", samples, race=False)
    if race and not case.paper:
        with cache():
            lasertri("(d) ranked at K = 1", samples, race=True, scoring_blocks=1)
    if race:
        with cache():
            lasertri("(d) racing", samples, race=True)
            lasertri("(e) second task", case.samples(SAMPLES, SECOND_SEED), race=True)
    seconds = {entry["route"]: entry["seconds"] for entry in rows}
    for entry in rows:
        entry["times_floor"] = entry["seconds"] / least
        for route, name in (("(b) paper", "b"), (f"(a) LASER, {plain.FEVER_VALIDATION}", "a")):
            if route in seconds:
                entry[f"times_faster_than_{name}"] = seconds[route] / entry["seconds"]
    found = full.rounds[0]
    if case.paper:
        exact = plain.paper_search(*context, count=COUNT, limit=trials, dtype=torch.float64)
        check = agreement(exact, found)
    else:
        check = remeasured(full)
    share = layer_share(case.model, list(found.ranking)[:COUNT])
    bound = passes["gradient"] + (1 + share * len(found.trials)) * passes["forward"]
    return {
        "samples": SAMPLES,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in case.model.parameters()),
        "weight_mib": sum(p.nbytes for p in case.model.parameters()) / MIB,
        "rows": rows,
        "layer_share": share,
        "bound_seconds": bound,
        "laser": laser["measured"],
        "check": check,
    }


def adapted(case: Case, samples: Sequence[Sample], *, race: bool, **settings: object) -> Adaptation:
    """The search on these samples, with as little held out as can be."""
    return adapt(
        case.model,
        samples,
        held_out=case.samples(SAMPLES, HELD_OUT_SEED),
        held_out_limit=1,
        tokenizer=case.tokenizer,
        files=case.files,
        calibration=SAMPLES,
        count=COUNT,
        ratios=LASER_RATIOS,
        blocks=BLOCK_COUNTS,
        race=race,
        accept="best",
        **settings,
    )


def agreement(paper: dict[str, object], full: Round) -> dict[str, object]:
    """Compare the plain route's trials, with FP64 SVDs, with lasertri's of the same edits, and the chosen edits.

    Where the ranking or a part measured differs, the choice is compared among the trials that both measured.
    """
    targets = {str(target): target for target in full.ranking}
    order = sorted(targets, key=lambda name: (targets[name].layer, name))
    ours = {trial.candidate.effect: trial for trial in full.trials}

    def effect(named: dict[str, object]) -> tuple[object, ...]:
        return Candidate(targets[named["target"]], named["blocks"], named["rho"]).effect

    shared = [trial for trial in paper["trials"] if effect(trial) in ours]
    theirs = max(shared, key=lambda t: plain.quality(t, order))
    mine = max(
        (ours[effect(trial)] for trial in shared),
        key=lambda t: plain.quality(t.candidate.to_dict() | t.measurement.to_dict(), order),
    )
    differences = []
    for trial in shared:
        accuracy = ours[effect(trial)].measurement.accuracy
        off = round(SAMPLES * (trial["accuracy"] - accuracy))
        if off:
            differences.append({**trial, "lasertri": accuracy, "samples": off})
    decided = full.decision.accepted or full.decision.rejected
    ranked = [score["target"] for score in paper["scores"]][:COUNT]
    same_choice = effect(theirs) == mine.candidate.effect
    whole = not paper["extrapolated"] and set(ranked) == {str(target) for target in list(full.ranking)[:COUNT]}
    if whole:
        same_choice = effect(paper["chosen"]) == decided.candidate.effect
    return {
        "agrees": same_choice and all(abs(entry["samples"]) <= 1 for entry in differences),
        "same_choice": same_choice,
        "choice_among": "all trials" if whole else "shared trials",
        "shared": len(shared),
        "paper_targets": ranked,
        "lasertri_targets": [str(target) for target in list(full.ranking)[:COUNT]],
        "paper_choice": theirs,
        "lasertri_choice": (decided if whole else mine).to_dict(),
        "largest_log_loss_difference": max(
            abs(trial["log_loss"] - ours[effect(trial)].measurement.log_loss) for trial in shared
        ),
        "differences": differences,
        "paper_fp64_seconds": paper["seconds"],
    }


def remeasured(full: Adaptation) -> dict[str, object]:
    """Compare the best trial with the same edit made of real weights, which `adapt` measures again."""
    found, real = full.rounds[0].decision, full.calibration
    if found.accepted is None or real.edited is None:
        return {"agrees": True, "summary": "no candidate was better than the model itself"}
    trial, after = found.accepted.measurement, real.edited
    off = int((trial.correct != after.correct).sum())
    summary = (
        f"{found.accepted.candidate.target}: log loss {trial.log_loss:.4f} as a trial, {after.log_loss:.4f} in place"
    )
    return {"agrees": off <= 2, "samples": off, "summary": f"{summary}, {off} samples answered otherwise"}


def layer_share(model: PreTrainedModel, targets: Sequence[Target]) -> float:
    """Mean share of layers from a target's on: what of a forward pass a replayed trial still runs."""
    count = len(layer_paths(model))
    return mean((count - target.layer) / count for target in targets)


def measured(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What the work gives, its peak memory over what was resident, its wall time, and the share of it on a CPU.

    With one thread a share well below 1 says that something else ran on the machine.
    """
    results: list[T] = []
    wall, cpu = time.perf_counter(), time.process_time()
    size = peak_bytes(lambda: results.append(work()))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return results[0], {"peak_mib": size / MIB, "wall": wall, "cpu_share": cpu / wall}


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak memory of the work over what was in use before: of the GPU where there is one."""
    if not torch.cuda.is_available():
        return peak(work)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def cache() -> Iterator[None]:
    """Within, an empty cache of lasertri's in a folder of its own."""
    before = os.environ.get("LASERTRI_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LASERTRI_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["LASERTRI_CACHE"]
            if before is not None:
                os.environ["LASERTRI_CACHE"] = before


def table(rows: Sequence[dict[str, object]]) -> str:
    ratios = f"{'(a) / it':>10}{'(b) / it':>10}{'it / floor':>11}"
    lines = [f"{'':20}{'seconds':>10}{'peak MiB':>10}{'forwards':>12}{ratios}{'on CPU':>8}"]
    lines += [
        f"{row['route']:20}{row['seconds']:10.2f}{row['peak_mib']:10.1f}{row['sample_forwards']:12,.0f}"
        f"{row['times_faster_than_a']:10.1f}{row.get('times_faster_than_b', float('nan')):10.2f}"
        f"{row['times_floor']:11.1f}{row['cpu_share']:8.0%}" + ("  extrapolated" if row.get("extrapolated") else "")
        for row in rows
    ]
    return "\n".join(lines)


def notes(figures: dict[str, object]) -> str:
    """Phases, the arithmetic bound, and the check."""
    check = figures["check"]
    lines = []
    for row in figures["rows"]:
        if "trials" in row:
            phases = ", ".join(f"{name} {seconds:.3f}" for name, seconds in row["phases"].items())
            lines.append(f"{row['route']}: {row['trials']} trials; {phases}; whole call {row['wall']:.3f} s")
        elif row["route"] == "(b) paper":
            lines.append("(b): " + ", ".join(f"{n} {s:.3f}" for n, s in row["phases"]["seconds"].items()))
    lines.append(
        f"layers from a chosen target on: {figures['layer_share']:.0%}, so (c) is worth "
        f"{figures['bound_seconds']:.2f} s of the floor's own passes"
    )
    if "summary" in check:
        return "\n".join([*lines, f"check: {'agrees' if check['agrees'] else 'DIFFERS'}; {check['summary']}"])
    lines.append(
        f"check against FP64 SVDs: {'agrees' if check['agrees'] else 'DIFFERS'}; {check['shared']} shared trials, "
        f"same choice among {check['choice_among']}: {check['same_choice']}, log loss apart by at most "
        f"{check['largest_log_loss_difference']:.1e}"
    )
    lines += [
        f"  {d['target']} K = {d['blocks']}, ρ = {d['rho']:g}: {d['accuracy']:.2f} against {d['lasertri']:.2f}"
        for d in check["differences"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
