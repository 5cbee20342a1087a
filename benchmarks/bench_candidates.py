"""How many candidates are worth a trial: `python -m benchmarks.bench_candidates`.

The search's own five targets of every task are tried at every ρ and K, without a race. The record keeps what each
candidate promised beside what it did. The table shows what is lost by trying those alone that promise most. With
--whitened the factors are whitened by the inputs of the calibration samples, as `compress` has them of a text.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

from benchmarks.bench_edits import CALIBRATION, HELD_OUT
from benchmarks.bench_truncations import rank_correlation
from benchmarks.edits.rows import Row, Rows
from benchmarks.edits.tasks import TASKS
from benchmarks.record import RESULTS, machine_record
from lasertri import load_model, load_tokenizer
from lasertri.data.split import split_samples
from lasertri.edit.candidate import Candidate
from lasertri.edit.truncation import Truncation
from lasertri.factors.store import FactorStore
from lasertri.measure.evaluate import evaluate
from lasertri.measure.measurement import Measurement
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target
from lasertri.search.decision import decide
from lasertri.search.problem import Problem, prepare
from lasertri.search.ranking import foretold, ranked
from lasertri.search.settings import Settings
from lasertri.search.strategies import distinct
from lasertri.search.tokens import Room, gather_tokens
from lasertri.search.trials import run_trials
from lasertri.support.timing import Clock

MOST = (8, 16, 32, 64)
RUINED = 0.5  # nats by which a ruinous candidate raises the loss


def with_whitened_factors(problem: Problem, targets: Sequence[Target]) -> Problem:
    """The same, where a rank k is that whose outputs for the calibration samples differ least."""
    model, samples = problem.model, problem.calibration
    layers = [target.linear_layer(model) for target in targets]
    tokens = gather_tokens(model, layers, samples.loss_batches(range(len(samples))), Room())

    def moment(target: Target) -> Tensor:
        rows = torch.cat(tokens[layers[targets.index(target)]].inputs).double()
        return rows.mT @ rows

    factors = FactorStore(model, targets, problem.settings.blocks, budget=4 << 30, inputs=moment)
    return replace(problem, factors=factors)


def measured(problem: Problem, whitened: bool) -> Row:
    """Every candidate of the targets chosen, and held out the winner among so many of the most promising."""
    model, settings = problem.model, problem.settings
    ranking = list(ranked(problem, problem.targets, Clock()))
    if whitened:
        problem = with_whitened_factors(problem, ranking[: settings.count])
    factors = problem.factors
    grid = settings.plan.candidates(ranking, count=settings.count, block_counts=settings.blocks, ratios=settings.ratios)
    candidates = distinct(list(grid))
    seconds = {}
    start = time.process_time()
    promise = foretold(problem, candidates, "promise").tolist()
    seconds["forecast"] = time.process_time() - start
    start = time.process_time()
    baseline, trials = run_trials(model, candidates, problem.calibration, factors, settings)
    seconds["trials"] = time.process_time() - start
    order = np.argsort([-value for value in promise], kind="stable")
    winners: dict[int, dict[str, object]] = {}

    @functools.cache  # several have one winner
    def held_out(candidate: Candidate) -> dict[str, float]:
        with Truncation.build(candidate, model, factors).applied(model):
            return _figures(evaluate(model, problem.held_out))

    for most in (*(most for most in MOST if most < len(trials)), len(trials)):
        chosen = [trials[n] for n in sorted(order[:most])]
        decision = decide(chosen, baseline, problem.calibration.groups)
        winner = decision.accepted or decision.rejected
        assert winner is not None
        named = winner.candidate.to_dict() | {"p_value": decision.p_value}
        winners[most] = named | held_out(winner.candidate)
    return {
        "baseline": _figures(baseline),
        "held_out": _figures(evaluate(model, problem.held_out)),
        "trials": [
            {
                "target": str(t.candidate.target),
                "blocks": t.candidate.blocks,
                "rho": t.candidate.ratio,
                "promise": value,
            }
            | _figures(t.measurement)
            for t, value in zip(trials, promise, strict=True)
        ],
        "winners": winners,
        "cpu_seconds": seconds,
    }


def _figures(measurement: Measurement) -> dict[str, float]:
    loss = measurement.log_loss if measurement.choice_log_loss is None else measurement.choice_log_loss
    return {"accuracy": measurement.accuracy, "loss": loss}


def table(row: Row) -> str:
    """By how many are tried: the best found on the calibration samples, how many are ruinous, the winner held out."""
    trials = sorted(row["trials"], key=lambda trial: -trial["promise"])
    promise, loss = (np.array([trial[name] for trial in trials]) for name in ("promise", "loss"))
    before, held_out = row["baseline"], row["held_out"]
    lines = [
        f"{len(trials)} candidates, rank correlation of promise and loss {rank_correlation(promise, -loss):.2f}; "
        f"as it is {100 * before['accuracy']:.0f} %, {before['loss']:.3f}, "
        f"held out {100 * held_out['accuracy']:.1f} %, {held_out['loss']:.3f}",
        "tried  best accuracy  lowest loss  ruinous   p   winner held out",
    ]
    for most, winner in row["winners"].items():
        tried = trials[: int(most)]
        lines.append(
            f"{int(most):5} {100 * max(t['accuracy'] for t in tried):14.0f} {min(t['loss'] for t in tried):12.3f} "
            f"{sum(t['loss'] > before['loss'] + RUINED for t in tried):8} {winner['p_value']:6.3f} "
            f"{100 * winner['accuracy']:.1f} %, {winner['loss']:.3f}"
        )
    return "\n".join(lines)


def main(
    model: Annotated[Path, typer.Option(help="Folder of a language model.")],
    data: Annotated[Path, typer.Option(help="Folder of the tasks, see benchmarks/edits/tasks.py.")],
    tasks: Annotated[str, typer.Option(help="Which, in this order.")] = ",".join(TASKS),
    seeds: Annotated[str, typer.Option(help="Of the split.")] = "0",
    whitened: Annotated[bool, typer.Option("--whitened", help="Whiten the factors.")] = False,
    out: Annotated[Path, typer.Option(help="Record, one JSON row a line.")] = RESULTS / "bench_candidates.jsonl",
) -> None:
    """Measure and record what the record lacks."""
    torch.set_num_threads(1)
    loaded: nn.Module | None = None
    tokenizer, rows = load_tokenizer(model), Rows(out)
    for seed in map(int, seeds.split(",")):
        for name in tasks.split(","):
            key = {"model": model.name, "task": name, "seed": seed, "dtype": "float32"}
            key["method"] = "truncate, whitened" if whitened else "truncate"
            if key not in rows:
                loaded = load_model(model, dtype="float32") if loaded is None else loaded
                samples = TASKS[name].samples(data)
                split = split_samples(samples, calibration=CALIBRATION, held_out_limit=HELD_OUT, seed=seed)
                settings = Settings(edit="truncate", race=False, delimiter=TASKS[name].delimiter, progress=False)
                given = {"held_out": split.held_out, "tokenizer": tokenizer}
                problem = prepare(loaded, split.calibration, settings, **given)
                with preserved(loaded):
                    rows.append(key | measured(problem, whitened) | {"machine": machine_record()})
            typer.echo(f"{key['method']}, {name}, seed {seed}: {table(rows[key])}")


if __name__ == "__main__":
    typer.run(main)
