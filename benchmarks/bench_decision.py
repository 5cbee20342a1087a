"""Which test is to accept an edit: power and level by simulation, `python benchmarks/bench_decision.py` (ten minutes).

A world has 176 candidates, as many as the default grid has: 5 matrices, each cut mildly to severely. A sample's answer
is won or lost where one number passes a bound, and its log-probability moves by another; both numbers have a part that
the candidates of a matrix share. In `MEASURED` (SmolLM2-135M-Instruct, 300 prompts of CounterFact, 56 truncations of 7
matrices) is what this was fitted to. What helps is one matrix, whose best candidate has the gain asked for and the
others half of it or more; the other matrices do some harm, the more the more severely they are cut.

Where nothing has an effect, a change is as likely as its opposite: an edit is to be accepted in 5 % of worlds or fewer.
Of worlds where truncation raises the log-probability and wins no answer no test of answers knows; the figure says how
often such an edit is taken. A step has two directions of four sizes; for it the fresh samples could as well calibrate.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from record import machine_record, write_record
from tqdm import tqdm

from lasertri.measure.significance import LEVEL, combined_p_value, max_t_p_value

CALIBRATION = 100
GRIDS = {"truncation": (176, 5), "step": (8, 2)}  # candidates, and matrices or directions that they are of
GAINS = (0.03, 0.06, 0.10)
FRESH = (25, 100, 200)
LOOKS = (0.25, 0.5, 1.0)  # shares of the fresh samples, of the sequential test
ROWS = ("gain", "relief", "both")
COMBINATIONS = (("gain", "gain", "gain"), ("both", "both", "both"), ("gain, then both", "gain", "both"))
FLIPS = 1000

MEASURED = {
    "answers changed by the mildest and the severest": [0.01, 0.10],
    "answers changed where a matrix helps": "0.04 + 1.5 × gain (7 % at 2.7 points, 13 % at 6.7, 17 % at 8.7)",
    "other gains of that matrix, as a share of the best": [0.5, 1.0],
    "gain in log-probability, its T over that of answers": [0.3, 1.8],
    "correlation of log-probability between candidates of a matrix, mild and severe": [0.37, 0.91],
    "correlation of an answer's change with its log-probability's": 0.25,
    "kurtosis of the change of log-probability": 5.5,
    "T / √n of log-probability where a matrix does not help, mild and severe": [-0.1, -0.45],
}
SHARED = (0.4, 0.9)
AGREES = 0.4  # between the two numbers; a bound that few pass leaves 0.25 of it
TAIL = 4.0  # shape of the gamma distribution of how far samples move, which makes the kurtosis


@dataclass(frozen=True)
class World:
    """What every candidate gains in answers and in log-probability, `[candidates, n]` each."""

    gain: np.ndarray
    relief: np.ndarray

    def part(self, start: int, stop: int) -> World:
        """Some of the samples."""
        return World(self.gain[:, start:stop], self.relief[:, start:stop])

    @property
    def winner(self) -> int:
        """As `decide` takes it: the most answers, then the highest log-probability."""
        return max(range(len(self.gain)), key=lambda c: (self.gain[c].sum(), self.relief[c].sum()))

    def of(self, candidate: int) -> World:
        """One candidate alone."""
        return World(self.gain[[candidate]], self.relief[[candidate]])

    def rows(self, which: str) -> np.ndarray:
        """What a test looks at: "gain", "relief", or both."""
        return np.concatenate([self.gain, self.relief]) if which == "both" else getattr(self, which)


def world(
    rng: np.random.Generator,
    n: int,
    grid: tuple[int, int],
    gain: float = 0.0,
    harm: float = 0.0,
    relief: float = 0.0,
) -> World:
    """Draw one.

    Args:
        grid: candidates and matrices.
        gain: of the best candidate of the first matrix.
        harm: of the other matrices, 1 as measured.
        relief: of the first matrix in log-probability, where it wins no answers: T / √n.
    """
    count, matrices = grid
    matrix, steps = np.arange(count) % matrices, count // matrices
    severity = (np.arange(count) // matrices / steps)[:, None]
    helps = (matrix == 0)[:, None]
    share = rng.uniform(0.5, 1, (count, 1))
    share[matrices * rng.integers(steps)] = 1
    true_gain = np.where(helps, gain * share, -0.02 * harm * severity)
    changed = np.where(helps & (gain > 0), 0.04 + 1.5 * true_gain, 0.01 + 0.09 * severity)
    changed = np.maximum(changed, np.abs(true_gain) + 1e-6)
    own = rng.uniform(0.3, 1.8, (count, 1)) * true_gain / np.sqrt(changed) if gain else relief
    mean = np.where(helps, own, -harm * (0.1 + 0.35 * severity))

    shared = SHARED[0] + (SHARED[1] - SHARED[0]) * severity
    first, other = (
        np.sqrt(shared) * rng.standard_normal((matrices, n))[matrix]
        + np.sqrt(1 - shared) * rng.standard_normal((count, n))
        for _ in range(2)
    )
    second = AGREES * first + math.sqrt(1 - AGREES**2) * other
    normal = statistics.NormalDist()
    win = np.vectorize(normal.inv_cdf)(1 - (changed + true_gain) / 2)
    lose = np.vectorize(normal.inv_cdf)((changed - true_gain) / 2)
    far = rng.gamma(TAIL, 1 / TAIL, n) / math.sqrt(1 + 1 / TAIL)
    return World((second > win) * 1.0 - (second < lose), first * far + mean)


def p_value(drawn: World, own: int, rows: str) -> float:
    """Of one candidate, by the joint test over all there are, of these rows of each."""
    values = drawn.rows(rows)
    mine = [own, own + len(drawn.gain)] if rows == "both" else [own]
    return max_t_p_value(values, mine, [f"{i:04}" for i in range(values.shape[1])], flips=FLIPS)


def sequential(winner: World, rows: str) -> float:
    """The winner alone in three looks, with O'Brien and Fleming's bound by sign flips: it may stop early."""
    values = winner.rows(rows)
    n = values.shape[1]
    values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)
    looks = [round(n * look) for look in LOOKS]
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(FLIPS, n))
    flipped = np.concatenate([signs[:, :look] @ values[:, :look].T for look in looks], axis=1).max(axis=1)
    observed = max(values[:, :look].sum(axis=1).max() for look in looks)
    return (int((flipped >= observed - 1e-9).sum()) + 1) / (FLIPS + 1)


def p_values(drawn: World) -> dict[tuple[str, str, int], float]:
    """What every rule makes of a world, by its name, the rows it tests and how many fresh samples it takes."""
    calibrated = drawn.part(0, CALIBRATION)
    own = calibrated.winner
    found = {("joint", rows, 0): p_value(calibrated, own, rows) for rows in ROWS}
    for fresh in FRESH:
        winner = drawn.part(CALIBRATION, CALIBRATION + fresh).of(own)
        for rows in ROWS:
            found["confirm", rows, fresh] = p_value(winner, 0, rows)
            found["sequential", rows, fresh] = sequential(winner, rows)
        for name, first, second in COMBINATIONS:
            parts = [found["joint", first, 0], found["confirm", second, fresh]]
            found["combined", name, fresh] = combined_p_value(parts, [CALIBRATION, fresh])
        together = drawn.part(0, CALIBRATION + fresh)
        found["more to calibrate", "gain", fresh] = p_value(together, together.winner, "gain")
        found["more to calibrate", "both", fresh] = p_value(together, together.winner, "both")
    return found


def situations() -> dict[str, dict[str, float]]:
    """What is true."""
    helps = {f"+{100 * gain:.0f} points": {"gain": gain, "harm": 1.0} for gain in GAINS}
    return {"no effect": {}, "log-probability alone": {"harm": 1.0, "relief": 0.15}, **helps}


def main(worlds: Annotated[int, typer.Option(help="Of every situation.")] = 500) -> None:
    """Simulate, print and record."""
    machine, records = machine_record(), []
    for kind, grid in GRIDS.items():
        shares: dict[tuple[str, str, int], list[float]] = {}
        for truth in tqdm(situations().values(), f"situations of a {kind}"):
            rng = np.random.default_rng(0)
            found = [p_values(world(rng, CALIBRATION + max(FRESH), grid, **truth)) for _ in range(worlds)]
            for rule in found[0]:
                shares.setdefault(rule, []).append(float(np.mean([each[rule] <= LEVEL for each in found])))
        typer.echo(f"{kind}, accepted: {', '.join(situations())}")
        for (test, rows, fresh), accepted in shares.items():
            typer.echo(f"{test:18} {rows:14} {fresh:4} fresh  " + " ".join(f"{share:6.1%}" for share in accepted))
            names = {"kind": kind, "test": test, "rows": rows, "fresh": fresh}
            records.append(names | dict(zip(situations(), accepted, strict=True)))
    write_record("bench_decision", {"worlds": worlds, "measured": MEASURED, "rows": records}, machine=machine)


if __name__ == "__main__":
    typer.run(main)
