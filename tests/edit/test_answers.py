"""Every held-out sample in `samples.jsonl`, with what the model gave before and after."""

import json

import pytest
import torch
from tiny import make_samples

from lasertri import Objective, adapt
from lasertri.result.adaptation import SAMPLES_NAME


def logged(result, folder):
    result.save(folder, log_samples=True)
    return [json.loads(line) for line in (folder / SAMPLES_NAME).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("options", [{"rank": 8, "accept": "best"}, {"blocks": 1, "ratios": 0.5, "count": 1}])
def test_rows_agree_with_the_figures(model, tokenizer, tmp_path, options):
    samples = make_samples(48)
    result = adapt(model, samples[:24], held_out=samples[24:], tokenizer=tokenizer, progress=False, **options)
    rows = logged(result, tmp_path / "out")
    asked = [(sample.prompt, sample.answers[sample.gold]) for sample in samples[24:]]
    assert sorted((row["prompt"], row["answer"]) for row in rows) == sorted(asked)
    assert (result.edit is None) == ("ratios" in options)
    for which, measured in (("before", result.held_out.baseline), ("after", result.held_out.edited)):
        if measured is None:
            assert {row[which] for row in rows} == {None}
            continue
        assert [row[which]["score"] for row in rows] == [float(row["answer"] == row[which]["given"]) for row in rows]
        assert sum(row[which]["score"] for row in rows) / len(rows) == measured.accuracy
        assert [row[which]["loss"] for row in rows] == pytest.approx(measured.losses.tolist())


def test_an_objectives_samples_are_numbered(tmp_path):
    torch.manual_seed(0)
    objective = Objective(
        forward=lambda model, batch: model(torch.stack(batch)).squeeze(-1),
        loss=lambda outputs, _: outputs.square(),
        score=lambda outputs, _: outputs.abs() < 1,
    )
    result = adapt(
        torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)),
        list(torch.randn(40, 4)),
        objective=objective,
        accept="best",
        progress=False,
    )
    rows = logged(result, tmp_path / "out")
    assert [row["sample"] for row in rows] == [*range(20)]
    assert all(row["before"].keys() == {"score", "loss"} for row in rows)
