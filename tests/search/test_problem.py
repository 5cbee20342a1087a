"""A search finds the journal of the same model, samples and options, and no other."""

import dataclasses
import shutil

import pytest
import torch
from tiny import make_model, make_samples, make_tokenizer
from torch import nn

from lasertri import Objective, Sample
from lasertri.model.loading import load_model
from lasertri.search.problem import prepare
from lasertri.search.settings import Settings

SAMPLES = make_samples(90)
HELD_OUT = [Sample(f"{sample.prompt} x", choices=("yes", "no"), label=0) for sample in make_samples(30)]


def journal_of(folder, model=None, samples=SAMPLES, held_out=HELD_OUT, resume=True, **options):
    return prepare(
        model or make_model("gptj"),
        samples,
        Settings(**options),
        held_out=held_out,
        tokenizer=make_tokenizer(),
        journal=folder,
        resume=resume,
    ).journal


@pytest.fixture
def folder(tmp_path):
    """One with a record of the search without changes."""
    with journal_of(tmp_path) as journal:
        journal.keep("x", [torch.zeros(1)])
    return tmp_path


def altered(change):
    model = make_model("gptj")
    with torch.no_grad():
        change(model)
    return model


def of_another(i, **change):
    return [dataclasses.replace(sample, **change) if n == i else sample for n, sample in enumerate(SAMPLES)]


@pytest.mark.parametrize(
    "change",
    [
        {"model": altered(lambda model: model.transformer.h[0].mlp.fc_in.bias[0].add_(1))},
        {"model": altered(lambda model: model.transformer.h[0].attn.embed_positions[0].add_(1))},
        {"model": altered(lambda model: model.bfloat16())},
        {"model": altered(lambda model: setattr(model.config, "layer_norm_epsilon", 1e-3))},
        {"model": make_model("gpt2")},
        {"samples": of_another(3, label=1 - SAMPLES[3].label)},
        {"samples": of_another(3, group="a")},
        {"samples": of_another(3, prompt="a b c d")},
        {"samples": SAMPLES[:-1]},
        {"held_out": HELD_OUT[:-1]},
        {"seed": 1},
        {"rank": 8},
        {"batch_size": 8},
        {"normalize": True},
        {"delimiter": "\n"},
        {"targets": "mlp"},
        {"edit": "shrink"},
        {"edit": "truncate"},
        {"accept": "best"},
        {"resume": False},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_change_of_model_samples_or_options_begins_anew(folder, change):
    assert journal_of(folder, **change).recall("x") is None


def test_where_they_come_from_and_what_is_shown_make_no_difference(tmp_path):
    make_model("gptj").save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    moved = [dataclasses.replace(sample, source="elsewhere") for sample in SAMPLES]
    models = (load_model(tmp_path / name, device="cpu") for name in ("one", "other"))
    with journal_of(tmp_path, next(models)) as journal:
        journal.keep("x", [torch.zeros(1)])
    assert journal_of(tmp_path, next(models), moved, progress=False).recall("x")


def test_of_an_objective_the_model_the_options_and_the_groups_are_known(tmp_path):
    def journal(samples, width=4, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(width, 2), nn.ReLU())
        objective = Objective(lambda *_: 0, lambda *_: 0, lambda *_: 0, group=lambda x: x // 2)
        return prepare(model, samples, Settings(**options), objective=objective, journal=tmp_path).journal

    with journal(range(60)) as first:
        first.keep("x", [torch.zeros(1)])
    assert journal(range(100, 160)).recall("x")
    for other in (
        journal(range(62)),
        journal(range(60), seed=1),
        journal(range(60), width=5),
        journal(range(0, 120, 2)),
    ):
        assert other.recall("x") is None
