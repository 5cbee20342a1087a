"""How often a real truncation is accepted: `python benchmarks/bench_confirmation.py --model DIR --data DIR` (ten min).

Truncations of five matrices are tried once, on many prompts of CounterFact. Then, over and over, 100 of the prompts at
random calibrate and 200 others confirm, and rules of `bench_decision` say whether the winner is accepted. Its true gain
is that on all prompts; as divisions share these, shares scatter less than with new prompts each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from bench_decision import CALIBRATION, World
from record import machine_record, write_record

from lasertri.data.papers.registry import task_samples
from lasertri.data.sample import group_names
from lasertri.edit.candidate import Candidate
from lasertri.factors.budget import budget_for
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.measure.significance import LEVEL, combined_p_value, max_t_p_value, relief
from lasertri.model.loading import load_model, load_tokenizer
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_targets
from lasertri.search.strategies import distinct
from lasertri.search.trial import TrialReadings
from lasertri.search.trials import plan_trials

TARGETS = r"layers\.(20\.mlp\.up|22\.mlp\.gate|25\.mlp\.down|28\.mlp\.up|28\.mlp\.down)"
BLOCKS, RATIOS = (1, 8), (0.8, 0.4, 0.1, 0.01)
FRESH = 200


def main(
    model: Annotated[Path, typer.Option(help="Folder of SmolLM2-135M-Instruct, or of a model with such layers.")],
    data: Annotated[Path, typer.Option(help="Folder of CounterFact.")],
    prompts: Annotated[int, typer.Option(help="That candidates are tried on.", min=CALIBRATION + FRESH)] = 400,
    divisions: Annotated[int, typer.Option(help="Of these prompts.")] = 400,
) -> None:
    """Try, divide, print and record."""
    machine = machine_record()
    outcomes, losses = tried(model, data, prompts)
    accepted: dict[str, list[bool]] = {}
    gains = []
    for seed in range(divisions):
        order = np.random.default_rng(seed).permutation(prompts)[: CALIBRATION + FRESH]
        first = World(outcomes.gain[:, order[:CALIBRATION]], outcomes.relief[:, order[:CALIBRATION]])
        loss = losses[:, order[:CALIBRATION]].mean(axis=1)
        winner = max(range(len(loss)), key=lambda c: (first.gain[c].sum(), -loss[c]))
        fresh = World(outcomes.gain[:, order[CALIBRATION:]], outcomes.relief[:, order[CALIBRATION:]]).of(winner)
        for rule, p_value in p_values(first, winner, fresh).items():
            accepted.setdefault(rule, []).append(p_value <= LEVEL)
        gains.append(float(outcomes.gain[winner].mean()))
    shares = {rule: float(np.mean(each)) for rule, each in accepted.items()}
    for rule, share in shares.items():
        typer.echo(f"{rule:40} {share:6.1%}")
    typer.echo(f"the winner's gain on all prompts: {np.mean(gains):+.1%}, from {min(gains):+.1%} to {max(gains):+.1%}")
    figures = {"prompts": prompts, "divisions": divisions, "candidates": len(losses), "accepted": shares}
    write_record("bench_confirmation", {"model": model.name, **figures, "gains": gains}, machine=machine)


def p_values(first: World, winner: int, fresh: World) -> dict[str, float]:
    """Of the winner, by every rule."""
    calibrating, confirming = ([str(i) for i in range(n)] for n in (CALIBRATION, FRESH))
    joint = {rows: max_t_p_value(getattr(first, rows), winner, calibrating, flips=1000) for rows in ("gain", "relief")}
    alone = {rows: max_t_p_value(fresh.rows(rows), range(2 if rows == "both" else 1), confirming, flips=1000)
             for rows in ("gain", "relief", "both")}  # fmt: skip
    return {
        **{f"joint, {rows}": p for rows, p in joint.items()},
        **{f"confirm, {rows}": p for rows, p in alone.items()},
        "combined, gain, then both": combined_p_value([joint["gain"], alone["both"]], [CALIBRATION, FRESH]),
    }


@torch.no_grad()
def tried(folder: Path, data: Path, prompts: int) -> tuple[World, np.ndarray]:
    """What candidates gain on every prompt, and their losses, `[candidates, prompts]`."""
    model, tokenizer = load_model(folder, device="cpu").float(), load_tokenizer(folder)
    samples = task_samples("counterfact", data_dir=data)
    groups = group_names(samples)
    alone = [i for i, group in enumerate(groups) if groups.index(group) == i]  # divisions know no groups
    drawn = np.random.default_rng(0).permutation(alone)[:prompts]
    if len(drawn) < prompts:
        raise typer.BadParameter(f"expected {prompts} prompts, got {len(drawn)} in {data}")
    encoded = EncodedSamples([samples[i] for i in drawn], model=model, tokenizer=tokenizer)
    targets = find_targets(model, TARGETS)
    candidates = distinct([Candidate(t, k, ratio) for t in targets for k in BLOCKS for ratio in RATIOS])
    factors = FactorStore(model, targets, BLOCKS, budget=budget_for(model))
    with preserved(model):
        readings = TrialReadings.empty(encoded, len(candidates))
        for runner, numbers in plan_trials(model, candidates, encoded, factors):
            mine = sorted(numbers)
            if mine:
                readings.update(mine, runner.run([candidates[i] for i in mine], range(prompts), lambda _: None))
    correct, _ = readings.edited.outcomes()
    before, _ = readings.baseline.outcomes()
    losses, unedited = readings.edited.sample_losses(), readings.baseline.sample_losses()
    reliefs = np.stack([relief(unedited, each) for each in losses])
    return World(correct.astype(float) - before, reliefs), losses


if __name__ == "__main__":
    typer.run(main)
