"""LASER's search and Compress to Impress's in plain torch and transformers, and the least that adapting can take.

Questions are tokenised and measured by lasertri, so that all routes answer the same ones. Everything else is written
as the papers' own code does it or, where there is none, as a reader of the paper would.
"""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri import Sample
from lasertri.language.samples import EncodedSamples
from lasertri.measure.evaluate import evaluate
from lasertri.measure.measurement import Measurement
from lasertri.search.settings import BLOCK_COUNTS
from lasertri.search.strategies import LASER_RATIOS

Candidate = tuple[str, int, float]  # matrix, K, ρ
LASER_RATES = (1, 2, 4, 6, 8, 9, 9.5, 9.9, 9.95)
FEVER_VALIDATION = 2617  # one fifth of FEVER, on which LASER measures every candidate


class Phases:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = now()
        yield
        self.seconds[name] += now() - start


def now() -> float:
    """Seconds on the clock, once a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def mlp_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every layer's fc_in and fc_out, in layer order, by module path."""
    return {
        name.removesuffix(".weight"): parameter
        for name, parameter in model.named_parameters()
        if re.search(r"\.mlp\.fc_(in|out)\.weight$", name)
    }


# LASER


def laser_trials(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    *,
    limit: int = 36,
    sample_limit: int = 100,
    extrapolate_to: Sequence[int] = (100, FEVER_VALIDATION),
) -> dict[str, object]:
    """Measure some of LASER's candidates at batch size 1, and say what its whole grid would take.

    Args:
        limit: candidates measured; best a multiple of 18, which weighs every matrix shape and rate equally.
        sample_limit: the first samples they are measured on.
        extrapolate_to: numbers of samples to extrapolate to. Seconds there are of the whole grid and the unedited
            model: truncations as often as there are candidates, forward passes in proportion to samples.
    """
    encoded = EncodedSamples(samples[:sample_limit], model=model, tokenizer=tokenizer, batch_size=1)
    grid = laser_grid(mlp_weights(model))
    phases, trials = Phases(), []
    for name, rate in tqdm(spread(grid, limit), "LASER", leave=False):
        weight = mlp_weights(model)[name]
        with torch.no_grad():
            base = weight.clone()
            with phases("truncate"):
                weight.copy_(svd_lowrank_truncated(weight, rate))
            with phases("forward"):
                measured = evaluate(model, encoded, may_fail=True)
            weight.copy_(base)
        trials.append({"target": name, "rate": rate, **measured.to_dict()})
    truncate, forward = (phases.seconds[name] / len(trials) for name in ("truncate", "forward"))
    return {
        "measured": {
            "candidates": len(trials),
            "samples": len(encoded),
            "sample_forwards": len(trials) * rows(encoded),
            "seconds": {**phases.seconds, "all": sum(phases.seconds.values())},
            "trials": trials,
        },
        "extrapolated": [
            {
                "candidates": len(grid),
                "samples": count,
                "seconds": len(grid) * truncate + (len(grid) + 1) * forward * count / len(encoded),
            }
            for count in extrapolate_to
        ],
    }


def laser_grid(weights: dict[str, nn.Parameter]) -> list[tuple[str, float]]:
    """Every layer's matrices at LASER's nine rates."""
    return [(name, rate) for name in weights for rate in LASER_RATES]


def spread(grid: list[tuple[str, float]], limit: int) -> list[tuple[str, float]]:
    """Evenly many candidates of every role and rate, over layers from the first to the last."""
    if limit >= len(grid):
        return grid
    per_layer = 2 * len(LASER_RATES)
    layers = len(grid) // per_layer
    chosen = []
    for i in range(limit):
        layer = round(i * (layers - 1) / max(1, limit - 1))
        kind = i * per_layer // limit if limit < per_layer else i % per_layer
        chosen.append(grid[layer * per_layer + kind])
    return chosen


def svd_lowrank_truncated(weight: Tensor, rate: float) -> Tensor:
    """LASER's `do_low_rank`: a randomised SVD on the CPU, two power iterations, multiplied out again."""
    rank = int(min(weight.shape) * ((10 - rate) * 0.1))
    u, sigma, v = torch.svd_lowrank(weight.cpu().float(), q=rank, niter=2)
    return (u @ torch.diag(sigma) @ v.mT).to(weight)


# Compress to Impress


def paper_search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    *,
    dtype: torch.dtype = torch.float32,
    count: int = 5,
    block_counts: Sequence[int] = BLOCK_COUNTS,
    ratios: Sequence[float] = LASER_RATIOS,
    batch_size: int = 16,
    limit: int | None = None,
) -> dict[str, object]:
    """Score every matrix by its gradient, measure the grid of the `count` best, choose the best trial.

    Args:
        dtype: of the SVDs; float64 makes chosen edits comparable to those of an exact route.
        limit: candidates measured, spread over the grid; those left out are counted at the mean seconds of the others,
            and the chosen edit is the best measured. All by default.
    """
    phases = Phases()
    with phases("encode"):
        encoded = EncodedSamples(samples, model=model, tokenizer=tokenizer, batch_size=batch_size)
    weights = mlp_weights(model)
    with phases("gradient"):
        gradients = all_gradients(model, weights, encoded)
    with phases("score"):
        score = {
            name: max(taylor(weight, gradients[name], k, ratios, dtype) for k in block_counts)
            for name, weight in weights.items()
        }
    ranking = sorted(score, key=lambda name: -score[name])
    with phases("trials: forward"):
        baseline = evaluate(model, encoded)
    grid = [(name, blocks, ratio) for name in ranking[:count] for blocks in block_counts for ratio in ratios]
    chosen, trials, one_reading = scattered(grid, limit), [], phases.seconds["trials: forward"]
    for name, blocks, ratio in tqdm(chosen, f"paper, {dtype}", leave=False):
        measured = _trial(model, weights[name], blocks, ratio, dtype, encoded, phases)
        trials.append({"target": name, "blocks": blocks, "rho": ratio, **_figures(measured)})
    measured_seconds = dict(phases.seconds)
    factor = len(grid) / len(chosen)
    phases.seconds["trials: truncate"] *= factor
    phases.seconds["trials: forward"] = one_reading + factor * (phases.seconds["trials: forward"] - one_reading)
    order = list(weights)
    best = max(trials, key=lambda trial: quality(trial, order))
    return {
        "chosen": {key: best[key] for key in ("target", "blocks", "rho")},
        "before": _figures(baseline),
        "after": {key: best[key] for key in ("accuracy", "log_loss")},
        "scores": [{"target": name, "score": score[name]} for name in ranking],
        "trials": trials,
        "candidates": len(grid),
        "extrapolated": len(chosen) < len(grid),
        "measured_seconds": measured_seconds,
        "seconds": {**phases.seconds, "all": sum(phases.seconds.values())},
        "sample_forwards": (len(grid) + 1) * rows(encoded) + rows(encoded, gold=True),
    }


def quality(trial: Mapping[str, object], order: Sequence[str]) -> tuple[float, ...]:
    """Accuracy, then the lower log loss, the larger ρ, the smaller K, the earlier matrix; greater is better."""
    log_loss = math.inf if trial["log_loss"] is None else trial["log_loss"]
    return trial["accuracy"], -log_loss, trial["rho"], -trial["blocks"], -order.index(trial["target"])


def scattered(grid: Sequence[Candidate], limit: int | None) -> list[Candidate]:
    """Steps of the golden section through the grid: any number of them is even over targets, K and ρ."""
    size = len(grid)
    step = next(s for s in range(max(1, round(0.618 * size)), 2 * size + 1) if math.gcd(s, size) == 1)
    taken = range(size if limit is None else min(limit, size))
    return [grid[i] for i in sorted(i * step % size for i in taken)]


def all_gradients(model: nn.Module, weights: dict[str, nn.Parameter], encoded: EncodedSamples) -> dict[str, Tensor]:
    """Gradients of the right answers' negative log-likelihood, of all matrices at once."""
    with _only_trained(model, weights):
        for batch in encoded.gold_batches():
            log_probs, _ = batch.read(model)
            (-log_probs.sum() / len(encoded)).backward()
        return {name: weight.grad for name, weight in weights.items()}


def taylor(weight: Tensor, gradient: Tensor, blocks: int, ratios: Sequence[float], dtype: torch.dtype) -> float:
    """The largest decrease of the loss, predicted at first order, over the ratios: Σ σ uᵀGv of what is removed."""
    score = [0.0] * len(ratios)
    pairs = zip(weight.detach().tensor_split(blocks), gradient.tensor_split(blocks), strict=True)
    for block, slope in pairs:
        u, sigma, vh = torch.linalg.svd(block.to(dtype), full_matrices=False)
        terms = sigma * ((u.mT @ slope.to(dtype)) * vh).sum(-1)
        score = [s + float(terms[int(len(terms) * ratio) :].sum()) for s, ratio in zip(score, ratios, strict=True)]
    return max(score)


def truncated(weight: Tensor, blocks: int, ratio: float, dtype: torch.dtype) -> Tensor:
    """Every block of rows at its best approximation of rank int(min(b, n) * ratio)."""
    stack = []
    for block in weight.detach().tensor_split(blocks):
        u, sigma, vh = torch.linalg.svd(block.to(dtype), full_matrices=False)
        rank = int(len(sigma) * ratio)
        stack.append(u[:, :rank] * sigma[:rank] @ vh[:rank])
    return torch.cat(stack).to(weight.dtype)


def _trial(
    model: nn.Module,
    weight: nn.Parameter,
    blocks: int,
    ratio: float,
    dtype: torch.dtype,
    encoded: EncodedSamples,
    phases: Phases,
) -> Measurement:
    base = weight.detach().clone()
    with torch.no_grad():
        with phases("trials: truncate"):
            weight.copy_(truncated(base, blocks, ratio, dtype))
        with phases("trials: forward"):
            measured = evaluate(model, encoded, may_fail=True)
        weight.copy_(base)
    return measured


def _figures(measured: Measurement) -> dict[str, float]:
    return {"accuracy": measured.accuracy, "log_loss": measured.log_loss}


# The least there is to do


def floor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    rounds: int = 3,
) -> dict[str, object]:
    """Seconds of one forward and backward pass and of one forward pass over the samples, best of some rounds."""
    encoded = EncodedSamples(samples, model=model, tokenizer=tokenizer, batch_size=batch_size)
    weights = mlp_weights(model)
    return {
        "gradient": _best(rounds, lambda: all_gradients(model, weights, encoded)),
        "forward": _best(rounds, lambda: evaluate(model, encoded)),
        "rounds": rounds,
        "samples": len(encoded),
    }


def rows(encoded: EncodedSamples, *, gold: bool = False) -> int:
    """Sequences that one measurement (or, `gold`, one gradient) runs through the model."""
    return sum(len(batch.input_ids) for batch in (encoded.gold_batches() if gold else encoded.batches()))


def _best(rounds: int, work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(rounds):
        start = now()
        work()
        seconds.append(now() - start)
    return min(seconds)


@contextmanager
def _only_trained(model: nn.Module, weights: dict[str, nn.Parameter]) -> Iterator[None]:
    """Within, gradients are computed for these parameters alone; none stay afterwards."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, before in required:
            parameter.requires_grad_(before)
            parameter.grad = None
