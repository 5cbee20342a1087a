"""Folders of models, all damaged: one is refused, or it answers as the sound one does.

A changed weight of a plain checkpoint cannot be seen, since it has no checksum; one with factored layers has.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from random import Random

import numpy as np
import torch
from tiny import make_model, make_tokenizer

import lasertri
from fuzz.damage import damage
from fuzz.outcome import attempt
from lasertri import Sample
from lasertri.factored.checkpoint import DESCRIPTION_NAME
from lasertri.language.samples import EncodedSamples
from lasertri.model.loading import load_model, load_tokenizer

KINDS = ("gptj", "llama", "bert", "t5", "factored")


@functools.cache
def saved(kind: str) -> tuple[Path, np.ndarray]:
    """A model's folder, and its answer."""
    name = "llama" if kind == "factored" else kind
    model, folder = make_model(name), Path(tempfile.mkdtemp(prefix="lasertri-fuzz-")) / "model"
    model.config._name_or_path = ""
    if kind == "factored":
        lasertri.compress(model, keep=0.6, factors="plain", progress=False)
        lasertri.save(model, folder)
    else:
        model.save_pretrained(folder)
    make_tokenizer(name).save_pretrained(folder)
    assert (folder / DESCRIPTION_NAME).exists() == (kind == "factored")
    return folder, answer(folder)


@torch.no_grad()
def answer(folder: Path) -> np.ndarray:
    """What a folder's model gives for a sample as its tokenizer reads it."""
    model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
    encoded = EncodedSamples([Sample("a b c", "d e")], model=model, tokenizer=tokenizer)
    return encoded.read(model).log_probs


def case(random: Random, folder: Path) -> str:
    """Damage a copy, load it, ask it."""
    kind = random.choice(KINDS)
    sound, expected = saved(kind)
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    done = damage(random, folder, [saved(other)[0] for other in KINDS if other != kind])
    found = attempt(lambda: answer(folder))
    seen = kind == "factored" or not done.startswith(("byte", "inserted", "field", "other"))
    assert not seen or np.array_equal(found, expected), f"{kind}: {done} was accepted"
    return "equal"
