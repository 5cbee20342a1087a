"""Fixtures that several tests share; what they are made of is in `tiny.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import make_model, make_samples, make_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lasertri import Sample


def pytest_configure() -> None:
    """One thread for each of several processes, which wait for one another with more."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave the user's cache of factors alone."""
    monkeypatch.setenv("LASERTRI_CACHE", "off")


@pytest.fixture
def model_of() -> Callable[..., PreTrainedModel]:
    return make_model


@pytest.fixture
def model() -> PreTrainedModel:
    return make_model("gptj")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def folder(tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model folder as the hub would give it."""
    path = tmp_path / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def samples() -> list[Sample]:
    return make_samples(48)
