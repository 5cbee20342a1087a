"""What racing saves, and whether it ever costs the winner: `python benchmarks/bench_race.py`.

Every run measures one grid twice, in full and in a race. A disagreement is a race whose winner is less accurate, on
the full grid, than the grid's best. With an effect: the demo's model, on samples drawn anew in every run. Without one:
small models of random weights, on samples with random labels. Fails at the first disagreement.
"""

from __future__ import annotations

import statistics
from typing import Annotated

import numpy as np
import torch
import typer
from record import machine_record, write_record
from tqdm import tqdm
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from lasertri import Sample
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import SYMBOLS, samples
from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.model.loading import load_model, load_tokenizer
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_targets
from lasertri.search.strategies import DEFAULT, STRATEGIES, distinct
from lasertri.search.trials import Trial, measure

BLOCKS = (1, 2, 4, 8)
NULL_MODELS = {
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16, "n_positions": 64},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160},
}


def main(
    runs: Annotated[int, typer.Option(help="Runs with an effect, and as many without.")] = 75,
    count: Annotated[int, typer.Option(help="Samples of a run.")] = 100,
) -> None:
    """Measure, print and record."""
    machine, rows = machine_record(), []
    for run in tqdm(range(2 * runs), "runs"):
        effect = run < runs
        model = load_model(MODEL_DIR, device="cpu") if effect else null_model(run)
        drawn = samples(count, seed=1000 + run) if effect else null_samples(count, run)
        rows.append({"run": run, "effect": effect, **compare(model, drawn, run)})
    for effect in (True, False):
        mine = [row for row in rows if row["effect"] is effect]
        name, lost = "an effect" if effect else "none", sum(row["points_lost"] > 0 for row in mine)
        typer.echo(
            f"with {name}: {len(mine)} runs, {lost} disagreements, answers measured "
            f"{statistics.mean(row['share'] for row in mine):.0%} of the grid's "
            f"({min(row['share'] for row in mine):.0%} to {max(row['share'] for row in mine):.0%}), time "
            f"{sum(row['race_seconds'] for row in mine) / sum(row['full_seconds'] for row in mine):.0%}"
        )
    write_record("bench_race", {"samples": count, "rows": rows}, machine=machine)
    if any(row["points_lost"] > 0 for row in rows):
        typer.echo("a race lost the grid's best candidate", err=True)
        raise typer.Exit(1)


def compare(model: PreTrainedModel, drawn: list[Sample], seed: int) -> dict[str, float]:
    """One grid in full and in a race: share of answers measured, and points of accuracy lost."""
    encoded = EncodedSamples(drawn, model=model, tokenizer=load_tokenizer(MODEL_DIR))
    targets = find_targets(model)
    grid = distinct(
        [Candidate(t, k, ratio) for t in targets[:5] for k in BLOCKS for ratio in STRATEGIES[DEFAULT].ratios]
    )

    def timed(race: bool) -> tuple[list[Trial], float]:
        factors = FactorStore(model, targets, BLOCKS, budget=1 << 30)
        _, trials = measure(model, grid, encoded, factors, race=race, accept="best", seed=seed)
        return trials, sum(trial.seconds for trial in trials)

    with preserved(model):
        (full, full_seconds), (raced, race_seconds) = timed(False), timed(True)
    accuracy = {trial.candidate: trial.measurement.accuracy for trial in full}
    winner = max(
        (trial for trial in raced if trial.finished), key=lambda t: (t.measurement.accuracy, -t.measurement.log_loss)
    )
    return {
        "candidates": len(grid),
        "share": sum(trial.measurement.n for trial in raced) / sum(trial.measurement.n for trial in full),
        "points_lost": 100 * (max(accuracy.values()) - accuracy[winner.candidate]),
        "full_seconds": full_seconds,
        "race_seconds": race_seconds,
    }


def null_model(seed: int) -> PreTrainedModel:
    """Random weights, large enough for opinions."""
    name = list(NULL_MODELS)[seed % len(NULL_MODELS)]
    torch.manual_seed(seed)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": len(SYMBOLS)}
    config = CONFIG_MAPPING[name](vocab_size=len(SYMBOLS) + 1, **NULL_MODELS[name], **ends)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def null_samples(count: int, seed: int) -> list[Sample]:
    """Two-choice samples with labels by the toss of a coin."""
    labels = np.random.default_rng(seed).integers(2, size=count)
    return [
        Sample(sample.prompt, choices=("a", "b"), label=int(label))
        for sample, label in zip(samples(count, seed=seed), labels, strict=True)
    ]


if __name__ == "__main__":
    typer.run(main)
