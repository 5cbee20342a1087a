"""What a step is best made of, held out: powers, damping, rank, layers: `python -m benchmarks.bench_directions`.

Of Δ = U_δ S_δ V_δᵀ and X = U_x S_x V_xᵀ a direction is V_δ φ(S_δ) (U_δᵀ U_x) φ(S_x) V_xᵀ at its best rank, with
φ(s) = s / (s² + λ)^p and λ a share of the mean eigenvalue: the plain gradient at p = 0, the whitened one at p = ½, on
either side. Every recipe makes a step of each fold's samples, as the product does; their mean is measured at sizes
doubled and halved until the held-out loss turns. So each has its best size in hindsight. A row is appended for every
model, task, seed and recipe; those that the record has are left out. Tune on these tasks and seeds, report on others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.bench_edits import CALIBRATION
from benchmarks.edits.case import Case, outcome
from benchmarks.edits.product import as_problem
from benchmarks.edits.rows import Row, Rows
from benchmarks.edits.tasks import TASKS
from benchmarks.record import RESULTS, machine_record
from lasertri import load_model, load_tokenizer
from lasertri.data.split import split_samples
from lasertri.edit.step import Step
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target
from lasertri.search.settings import Settings
from lasertri.search.step_search import averaged, gather_folds, parts_of
from lasertri.search.tokens import Tokens
from lasertri.support.timing import Clock

HELD_OUT = 200


@dataclass(frozen=True)
class Recipe:
    """How a step is made.

    Attributes:
        powers: p of Δ and of X.
        damping: λ, as a share of the mean eigenvalue.
        rank: of the mean of the folds' steps.
        layers: regular expression for the paths of those that take part.
        evened: power of its length that every token's δ is divided by.
        first: size to begin with.
    """

    powers: tuple[float, float] = (0.5, 0.5)
    damping: float = 0.1
    rank: int = 64
    layers: str = ""
    evened: float = 0.0
    first: float = 2.0


WHITENED, PLAIN = Recipe(), Recipe(powers=(0, 0), rank=16, first=1.0)
RECIPES = {
    "whitened": WHITENED,
    "whitened, λ .01": replace(WHITENED, damping=0.01),
    "whitened, λ 1": replace(WHITENED, damping=1.0),
    "whitened, rank 16": replace(WHITENED, rank=16),
    "whitened, rank 32": replace(WHITENED, rank=32),
    "whitened, rank 128": replace(WHITENED, rank=128),
    "whitened, quarter powers": replace(WHITENED, powers=(0.25, 0.25)),
    "whitened, inputs alone": replace(WHITENED, powers=(0, 0.5)),
    "whitened, outputs alone": replace(WHITENED, powers=(0.5, 0)),
    "whitened, attention alone": replace(WHITENED, layers="attn"),
    "whitened, MLPs alone": replace(WHITENED, layers="mlp"),
    "whitened, tokens evened": replace(WHITENED, evened=0.5),
    "plain": PLAIN,
    "plain, rank 8": replace(PLAIN, rank=8),
    "plain, rank 64": replace(PLAIN, rank=64),
    "plain, tokens evened": replace(PLAIN, evened=0.5),
}


@dataclass(frozen=True)
class Side:
    """Thin SVD of rows `[T, s]` without its long side: U `[T, p]` and S `[p]`; V = rowsᵀ U S⁻¹."""

    rows: Tensor
    u: Tensor
    s: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Side:
        rows = rows.float()
        squares, u = torch.linalg.eigh(rows @ rows.mT)
        kept = squares > 1e-6 * squares[-1]
        return cls(rows, u[:, kept], squares[kept].sqrt())

    def scaled(self, power: float, damping: float) -> Tensor:
        """φ(S)."""
        squares = self.s.square()
        return self.s / (squares + damping * squares.sum() / self.rows.shape[1]) ** power

    def lift(self, vectors: Tensor) -> Tensor:
        """V times vectors `[p, r]`."""
        return self.rows.mT @ (self.u @ (vectors / self.s.unsqueeze(-1)))


@dataclass(frozen=True)
class Layer:
    """What a layer ran in one fold, X and Δ."""

    inputs: Side
    deltas: Side

    def step(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Factors of the direction, at half of the rank: the mean of two folds has all of it."""
        left = self.deltas.scaled(recipe.powers[0], recipe.damping)
        right = self.inputs.scaled(recipe.powers[1], recipe.damping)
        core = left.unsqueeze(-1) * (self.deltas.u.mT @ self.inputs.u) * right
        vectors = torch.linalg.eigh(core @ core.mT).eigenvectors[:, -(recipe.rank // 2) :]
        return self.deltas.lift(vectors), self.inputs.lift(core.mT @ vectors).mT


def folds_layers(tokens: Sequence[Mapping[Target, Tokens]], evened: float) -> list[dict[Target, Layer]]:
    """Every fold's layers; those with the same inputs share a side."""
    folds = []
    for fold in tokens:
        sides: dict[tuple[int, ...], Side] = {}
        layers = {}
        for target, own in fold.items():
            key = tuple(map(id, own.inputs))
            if key not in sides:
                sides[key] = Side.of(torch.cat(own.inputs))
            deltas = torch.cat(own.deltas).float()
            if evened:
                deltas = deltas / deltas.norm(dim=1, keepdim=True) ** evened
            layers[target] = Layer(sides[key], Side.of(deltas))
        folds.append(layers)
    return folds


def made(
    recipe: Recipe,
    folds: Sequence[Mapping[Target, Layer]],
    tokens: Sequence[Mapping[Target, Tokens]],
    losses: Sequence[float],
) -> Step:
    """The mean of the folds' steps of size 1, see `directions.make_step`; losses are sums over a fold's samples."""
    steps = []
    for layers, own, loss in zip(folds, tokens, losses, strict=True):
        factors = {t: layer.step(recipe) for t, layer in layers.items() if re.search(recipe.layers, t.module)}
        decrease = sum(
            float(((torch.cat(own[t].deltas) @ left) * (layers[t].inputs.rows @ right.mT)).sum())
            for t, (left, right) in factors.items()
        )
        factors = {t: (-loss / decrease * left, right) for t, (left, right) in factors.items()}
        steps.append(Step("", recipe.rank, 1.0, factors))
    return averaged(steps, 1.0)


def best_size(case: Case, step: Step, first: float) -> Row:
    """Doubled and halved from the first until the held-out loss turns."""
    tried: dict[float, Row] = {}

    def loss(size: float) -> float:
        if size not in tried:
            with step.scaled(size).beside(case.model):
                found = outcome(case.model, case.held_out)
            tried[size] = {"size": size, "loss": found.loss, "accuracy": found.measurement.accuracy}
        return float(tried[size]["loss"])

    size = first
    for factor in (2.0, 0.5):
        while 2**-5 < size < 2**5 and loss(size * factor) < loss(size):
            size *= factor
    return tried[size]


def main(
    model: Annotated[Path, typer.Option(help="Folder of a language model.")],
    data: Annotated[Path, typer.Option(help="Folder of the tasks, see benchmarks/edits/tasks.py.")],
    tasks: Annotated[str, typer.Option(help="Which, in this order.")] = "counterfact,antonyms,translation_en-fr",
    seeds: Annotated[str, typer.Option(help="Of the split and the folds.")] = "10,11",
    out: Annotated[Path, typer.Option(help="Record, one JSON row a line.")] = RESULTS / "bench_directions.jsonl",
) -> None:
    """Measure and record what the record lacks."""
    torch.set_num_threads(1)
    loaded, tokenizer, rows = load_model(model, dtype="float32"), load_tokenizer(model), Rows(out)
    for seed in map(int, seeds.split(",")):
        for name in tasks.split(","):
            key = {"model": model.name, "task": name, "seed": seed, "dtype": "float32"}
            if all(key | {"method": recipe} in rows for recipe in RECIPES):
                continue
            samples = TASKS[name].samples(data)
            split = split_samples(samples, calibration=CALIBRATION, held_out_limit=HELD_OUT, seed=seed)
            case = Case(loaded, tokenizer, TASKS[name], split, seed)
            baseline = {"loss": case.baseline.loss, "accuracy": case.baseline.measurement.accuracy}
            with preserved(loaded), torch.no_grad():
                problem = as_problem(case, Settings(targets=".", seed=seed, progress=False))
                parts = parts_of(problem)
                tokens = gather_folds(problem, parts, Clock())
                losses = [outcome(loaded, case.calibration, part).loss * len(part) for part in parts]
                folds: dict[float, list[dict[Target, Layer]]] = {}
                for method, recipe in RECIPES.items():
                    if key | {"method": method} in rows:
                        continue
                    if recipe.evened not in folds:
                        folds = {recipe.evened: folds_layers(tokens, recipe.evened)}  # one at a time: they are large
                    step = made(recipe, folds[recipe.evened], tokens, losses)
                    found = best_size(case, step, recipe.first)
                    rows.append(key | {"method": method, "baseline": baseline} | found | {"machine": machine_record()})
                    typer.echo(
                        f"{name:20} {seed} {method:26} {found['size']:6} {found['accuracy']:.1%} {found['loss']:.3f}"
                    )


if __name__ == "__main__":
    typer.run(main)
