"""What edits are compared with, on a tiny model: every row is whole, and a second run goes on where one stopped."""

import json

import numpy as np
import pytest
from running import run_benchmark
from tiny import make_samples

METHODS = ("step", "step-merged", "step-all", "step-all-merged", "shrink", "truncate", "lora", "lora-ga", "few-shot")


def write_tasks(folder):
    """A task with choices and one with completions, of the same questions."""
    asked = make_samples(60)
    tasks = {
        "sentiment": [{"prompt": s.prompt, "choices": s.choices, "label": s.label} for s in asked],
        "translation_en-fr": [{"prompt": s.prompt, "completion": s.answers[s.gold]} for s in asked],
    }
    (folder / "small_tasks").mkdir()
    for name, rows in tasks.items():
        (folder / "small_tasks" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks


def run(model, data, out):
    options = {"--model": model, "--data": data, "--out": out, "--tasks": "sentiment,translation_en-fr", "--seeds": "0"}
    options["--methods"] = ",".join(METHODS)
    run_benchmark("bench_edits", *(part for pair in options.items() for part in pair))
    return out.read_text(encoding="utf-8")


@pytest.mark.slow
def test_rows_are_whole_and_a_second_run_goes_on(folder, tmp_path):
    pytest.importorskip("peft")
    tasks, out = write_tasks(tmp_path), tmp_path / "rows.jsonl"
    text = run(folder, tmp_path, out)
    rows = [json.loads(line) for line in text.splitlines()]
    assert {(row["task"], row["method"]) for row in rows} == {(task, method) for task in tasks for method in METHODS}
    for row in rows:
        kind = "choice" if row["task"] == "sentiment" else "answer"
        assert row["objective"] == kind
        for figures in (row["baseline"], row["held_out"]):
            assert len(figures["correct"]) == len(figures["answer_log_probs"]) == row["held_out_samples"] == 30
            assert figures["accuracy"] == pytest.approx(figures["correct"].count("1") / 30)
            assert figures["log_loss"] == pytest.approx(-np.mean(figures["answer_log_probs"]), abs=1e-4)
        low, high = row["held_out"]["log_loss_interval"]
        assert low <= row["held_out"]["log_loss"] - row["baseline"]["log_loss"] <= high
    for row in (row for row in rows if row["method"].startswith("lora")):
        assert row["baseline"] == rows[0]["baseline"] or row["task"] != rows[0]["task"]  # the model came back as it was
        best = min(row["runs"], key=lambda run: run["cross_fitted"])
        assert row["chosen"] == {"rate": best["rate"], "epochs": best["epochs"]}
        assert best["log_loss"] == row["held_out"]["log_loss"]
        start = 3 * (row["method"] == "lora-ga")
        assert row["forward_equivalents"] == pytest.approx(2 * (start + 2 * 5 + 5) + start + 2 * best["epochs"])

    whole = text.splitlines(keepends=True)
    out.write_text("".join(whole[:-1]) + whole[-1][:100], encoding="utf-8")  # stopped within the last row
    again = run(folder, tmp_path, out).splitlines(keepends=True)
    assert again[:-1] == whole[:-1]
    assert json.loads(again[-1])["held_out"] == rows[-1]["held_out"]
