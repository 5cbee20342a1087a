"""The record of candidates on a tiny model: each with its promise, and the winners among those that promise most."""

import json
import sys
from pathlib import Path

import pytest
from running import run_benchmark
from tiny import make_samples

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks that are modules of a package
from benchmarks import bench_candidates as bench


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--whitened",)])
def test_every_candidate_is_tried_and_the_winner_among_all_is_the_best(folder, tmp_path, options):
    tasks = tmp_path / "small_tasks"
    tasks.mkdir()
    rows = (
        json.dumps({"prompt": sample.prompt, "choices": ["yes", "no"], "label": sample.label})
        for sample in make_samples(160)
    )
    (tasks / "sentiment.jsonl").write_text("\n".join(rows))
    record = tmp_path / "rows.jsonl"
    for _ in range(2):
        named = ("--model", folder, "--data", tmp_path, "--tasks", "sentiment", "--out", record)
        run_benchmark("bench_candidates", *named, *options)
        [row] = map(json.loads, record.read_text(encoding="utf-8").splitlines())
    assert row["method"] == ("truncate, whitened" if options else "truncate")
    trials = row["trials"]
    assert len({(trial["target"], trial["blocks"], trial["rho"]) for trial in trials}) == len(trials)
    assert list(row["winners"]) == [*map(str, bench.MOST), str(len(trials))]
    best = max(trials, key=lambda trial: (trial["accuracy"], -trial["loss"]))
    winner = row["winners"][str(len(trials))]
    assert (winner["target"], winner["blocks"], winner["rho"]) == (best["target"], best["blocks"], best["rho"])


def test_the_table_sees_what_is_lost_by_trying_fewer():
    trials = [
        {"promise": 0.1, "accuracy": 0.3, "loss": 2.9},
        {"promise": 0.3, "accuracy": 0.2, "loss": 4.0},
        {"promise": -1.0, "accuracy": 0.4, "loss": 2.8},
    ]
    figures = {"accuracy": 0.25, "loss": 3.0}
    winners = {most: figures | {"p_value": 0.5} for most in (1, 2, 3)}
    row = {"baseline": figures, "held_out": figures, "trials": trials, "winners": winners}
    lines = [line.split()[:4] for line in bench.table(row).splitlines()[2:]]
    assert lines == [["1", "20", "4.000", "1"], ["2", "30", "2.900", "1"], ["3", "40", "2.800", "1"]]
