"""What truncations do to a real model, and what foretells it: `python -m benchmarks.bench_truncations`.

The ground truth is measured: the change of the calibration loss under truncations of many linear layers, each tried
with the trial engine, without a race. Beside it stands what could be known before, from the tokens of one backward
pass: X and Δ sample by sample. With E = (A_k - A) X, what a layer's outputs change by:

    taylor    mean over samples of Σ_t δ_t·e_t, the loss's change at first order
    squares   mean over samples of (Σ_t δ_t·e_t)²: twice its curvature by the empirical Fisher matrix
    tokens    mean over samples of Σ_t (δ_t·e_t)²: the same without what tokens have in common
    norms     mean over samples of Σ_t |δ_t|² |e_t|²: the same whatever the directions
    change    Σ|e_t|² / Σ|A x_t|²; `mean` and `worst` over tokens of |e_t|² / |A x_t|²
    paper     the papers' score at this K: -Σ max(0, ∂L/∂σ) over the last fifth

One row is appended for every model, task, seed and layer; those that the record has are left out. Then a table says how
well scores made of these rank what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.bench_edits import CALIBRATION
from benchmarks.edits.case import Case
from benchmarks.edits.rows import Row, Rows
from benchmarks.edits.tasks import TASKS
from benchmarks.record import RESULTS, machine_record
from lasertri import load_model, load_tokenizer
from lasertri.data.split import split_samples
from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target, find_linear_layers
from lasertri.ops import reduce_blocks, score_blocks
from lasertri.search.settings import Settings
from lasertri.search.tokens import Room, gather_tokens
from lasertri.search.trials import run_trials

RATIOS, BLOCKS = (0.9, 0.6, 0.2, 0.05), (1, 8)


Scores = Callable[[dict[str, np.ndarray]], np.ndarray]
SCORES: dict[str, Scores] = {  # predicted change of the loss, or what should grow with it
    "taylor": lambda f: f["taylor"],
    "taylor + ½ squares": lambda f: f["taylor"] + 0.5 * f["squares"],
    "fisher": lambda f: f["taylor"] + 0.5 * (f["squares"] - f["taylor"] ** 2),  # the default
    "taylor + ½ squares + .1 mean": lambda f: f["taylor"] + 0.5 * f["squares"] + 0.1 * f["mean"],
    "taylor + ½ tokens": lambda f: f["taylor"] + 0.5 * f["tokens"],
    "taylor + ½ norms": lambda f: f["taylor"] + 0.5 * f["norms"],
    "squares": lambda f: f["squares"],
    "change": lambda f: f["change"],
    "mean": lambda f: f["mean"],
    "paper": lambda f: f["paper"],
    "random": lambda f: np.random.default_rng(0).random(len(f["taylor"])),
}


def features(weight: Tensor, candidate: Candidate, pieces: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """What is known before a trial; pieces are X and Δ of every sample."""
    reduced = reduce_blocks(weight, blocks=candidate.blocks, ratios=candidate.ratio)
    difference = reduced.to(weight.dtype) - weight
    changes = [inputs @ difference.mT for inputs, _ in pieces]
    along = [(deltas * change).sum(dim=1) for (_, deltas), change in zip(pieces, changes, strict=True)]
    sizes = [change.square().sum(dim=1) for change in changes]
    outputs = torch.cat([(inputs @ weight.mT).square().sum(dim=1) for inputs, _ in pieces])
    first = torch.stack([own.sum() for own in along]).double()
    relative = torch.cat(sizes) / outputs
    norms = [(deltas.square().sum(dim=1) * size).sum() for (_, deltas), size in zip(pieces, sizes, strict=True)]
    return {
        "taylor": float(first.mean()),
        "squares": float(first.square().mean()),
        "tokens": float(torch.stack([own.square().sum() for own in along]).mean()),
        "norms": float(torch.stack(norms).mean()),
        "change": float(torch.cat(sizes).sum() / outputs.sum()),
        "mean": float(relative.mean()),
        "worst": float(relative.max()),
    }


def measured(
    model: torch.nn.Module, target: Target, samples: EncodedSamples, pieces: Sequence[tuple[Tensor, Tensor]]
) -> Row:
    """Every truncation of one layer: what it does, and what foretells it."""
    weight = target.view(target.parameter(model)).float()
    candidates = [Candidate(target, blocks, ratio) for blocks in BLOCKS for ratio in RATIOS]
    factors = FactorStore(model, [target], BLOCKS, budget=1 << 30)
    baseline, trials = run_trials(model, candidates, samples, factors, Settings(race=False, progress=False))
    gradient = sum(deltas.mT @ inputs for inputs, deltas in pieces) / len(pieces)
    found = []
    for trial in trials:
        candidate = trial.candidate
        scores = score_blocks(weight, gradient, blocks=candidate.blocks)
        found.append(
            {"blocks": candidate.blocks, "rho": candidate.ratio}
            | {"loss": trial.measurement.log_loss, "accuracy": trial.measurement.accuracy}
            | features(weight, candidate, pieces)
            | {"paper": -float(scores.tail(ratios=(0.8,), score="paper").max())}
        )
    return {"baseline": {"loss": baseline.log_loss, "accuracy": baseline.accuracy}, "trials": found}


def table(rows: Sequence[Row]) -> str:
    """Rank correlation with what was measured, over candidates and over each layer's best; and what the score's first
    layer, and its first five, lose beside the best of all, in nats."""
    layer = np.repeat(np.arange(len(rows)), [len(row["trials"]) for row in rows])
    trials = [trial for row in rows for trial in row["trials"]]
    change = np.array([trial["loss"] for trial in trials]) - np.array([rows[i]["baseline"]["loss"] for i in layer])
    known = {name: np.array([trial[name] for trial in trials]) for name in trials[0]}
    best = _least(change, layer)
    lines = [f"{'':30} candidates  layers  regret@1  regret@5"]
    for name, score in SCORES.items():
        foretold = score(known)
        first = _least(foretold, layer)
        order = np.argsort(first, kind="stable")
        regrets = (best[order[:count]].min() - best.min() for count in (1, 5))
        cells = (rank_correlation(foretold, change), rank_correlation(first, best), *regrets)
        lines.append(f"{name:30} {cells[0]:10.2f} {cells[1]:7.2f} {cells[2]:9.3f} {cells[3]:9.3f}")
    return "\n".join(lines)


def _least(values: np.ndarray, layer: np.ndarray) -> np.ndarray:
    return np.array([values[layer == i].min() for i in range(layer.max() + 1)])


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(*(np.argsort(np.argsort(values, kind="stable")) for values in (one, other)))[0, 1])


def main(
    model: Annotated[Path, typer.Option(help="Folder of a language model.")],
    data: Annotated[Path, typer.Option(help="Folder of the tasks, see benchmarks/edits/tasks.py.")],
    tasks: Annotated[str, typer.Option(help="Those with completions.")] = "counterfact,antonyms",
    seeds: Annotated[str, typer.Option(help="Of the split.")] = "0",
    share: Annotated[float, typer.Option(help="Of the layers' matrices, drawn by the seed 0.")] = 1 / 3,
    out: Annotated[Path, typer.Option(help="Record, one JSON row a line.")] = RESULTS / "bench_truncations.jsonl",
) -> None:
    """Measure and record what the record lacks."""
    torch.set_num_threads(1)
    loaded, tokenizer, rows = load_model(model, dtype="float32"), load_tokenizer(model), Rows(out)
    layers = find_linear_layers(loaded)
    drawn = np.random.default_rng(0).permutation(len(layers))[: round(share * len(layers))]
    targets = [layers[i] for i in sorted(drawn)]
    for seed in map(int, seeds.split(",")):
        for name in tasks.split(","):
            key = {"model": model.name, "task": name, "seed": seed, "dtype": "float32"}
            left = [target for target in targets if key | {"method": str(target)} not in rows]
            split = split_samples(TASKS[name].samples(data), calibration=CALIBRATION, held_out_limit=1, seed=seed)
            samples = Case(loaded, tokenizer, TASKS[name], split, seed).calibration
            with preserved(loaded):
                batches = [batch for i in range(len(samples)) for batch in samples.loss_batches([i])]  # one a sample
                tokens = gather_tokens(loaded, left, batches, Room()) if left else {}
                for target in left:
                    own = tokens.pop(target)
                    pieces = list(zip(own.inputs, own.deltas, strict=True))
                    machine = {"machine": machine_record()}
                    rows.append(key | {"method": str(target)} | measured(loaded, target, samples, pieces) | machine)
                    typer.echo(f"{name} {seed} {target}")
            known = [rows[key | {"method": str(target)}] for target in targets]
            typer.echo(f"{model.name}, {name}, seed {seed}, {len(known)} layers\n{table(known)}")


if __name__ == "__main__":
    typer.run(main)
