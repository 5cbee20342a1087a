"""Folders of models, all damaged: one is refused, or it answers as the sound one does.

A changed weight of a plain checkpoint cannot be seen, since it has no checksum; weights with factored layers have.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import torch
from tiny import make_model, make_tokenizer

import lasertri
from fuzz.damage import changed, damage
from fuzz.folder import kept_folder
from fuzz.outcome import attempt
from lasertri import Sample
from lasertri.factored.checkpoint import DESCRIPTION, _sha256
from lasertri.language.samples import EncodedSamples
from lasertri.model.loading import load_model, load_tokenizer

KINDS = ("gptj", "llama", "bert", "t5", "sharded", "factored")


@functools.cache
def saved(kind: str) -> tuple[Path, np.ndarray]:
    """A model's folder, and its answer."""
    name = "llama" if kind in ("factored", "sharded") else kind
    model, folder = make_model(name), kept_folder() / "model"
    model.config._name_or_path = ""
    if kind == "factored":
        lasertri.compress(model, keep=0.6, factors="plain", progress=False)
        lasertri.save(model, folder)
    else:
        model.save_pretrained(folder, max_shard_size="9KB" if kind == "sharded" else "1GB")
    make_tokenizer(name).save_pretrained(folder)
    assert (DESCRIPTION in json.loads((folder / "config.json").read_text())) == (kind == "factored")
    return folder, answer(folder)


@torch.no_grad()
def answer(folder: Path) -> np.ndarray:
    """What a folder's model gives for a sample as its tokenizer reads it."""
    model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
    encoded = EncodedSamples([Sample("a b c", "d e")], model=model, tokenizer=tokenizer)
    return encoded.read(model).log_probs


def tamper(random: Random, folder: Path) -> None:
    """Change what a description of factored layers says, and write the checksum that this has."""
    config = json.loads((folder / "config.json").read_text())
    described = config[DESCRIPTION]
    described.pop("sha256")
    name = random.choice(sorted(described))
    described[name] = changed(random, described[name])
    config[DESCRIPTION] = described | {"sha256": _sha256(described)}
    (folder / "config.json").write_text(json.dumps(config))


def case(random: Random, folder: Path) -> str:
    """Damage a copy, load it, ask it."""
    kind = random.choice(KINDS)
    sound, expected = saved(kind)
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    if kind == "factored" and random.random() < 0.3:
        tamper(random, folder)
        attempt(lambda: answer(folder))
        return "answered"
    done = damage(random, folder, [saved(other)[0] for other in KINDS if other != kind])
    found = attempt(lambda: answer(folder))
    how, file = done.split()
    summed = kind == "factored" and file.startswith("model")
    seen = summed or how not in ("byte", "inserted", "field", "other")
    assert not seen or np.array_equal(found, expected), f"{kind}: {done} was accepted"
    return "equal"
