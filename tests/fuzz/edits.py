"""Folders of edits, all damaged: one is refused, or it does what the sound one does."""

from __future__ import annotations

import copy
import functools
import shutil
import tempfile
from pathlib import Path
from random import Random

import torch
from tiny import make_model, make_samples, make_tokenizer

from fuzz.damage import damage
from fuzz.outcome import attempt
from lasertri import adapt
from lasertri.edit.edit import Edit

KINDS = {
    "truncate": {"blocks": (1, 3), "ratios": (0.5,), "count": 1},
    "step": {"direction": "plain", "rank": 4},
    "shrink": {"edit": "shrink"},
}


@functools.cache
def model() -> torch.nn.Module:
    return make_model("gptj")


@functools.cache
def saved(kind: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """An edit's folder, and the weights that it makes."""
    options = KINDS[kind] | {"accept": "best", "targets": r"h\.0\.mlp", "progress": False}
    result = adapt(model(), make_samples(48), tokenizer=make_tokenizer(), **options)
    folder = Path(tempfile.mkdtemp(prefix="lasertri-fuzz-"))
    result.edit.save(folder)
    return folder, weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those that a folder's edit makes of the model's."""
    edited = copy.deepcopy(model())
    Edit.load(folder).apply(edited)
    return edited.state_dict()


def case(random: Random, folder: Path) -> str:
    """Damage a copy, load it, apply it."""
    kind = random.choice(sorted(KINDS))
    sound, expected = saved(kind)
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    done = damage(random, folder, [saved(other)[0] for other in sorted(KINDS) if other != kind])
    found = attempt(lambda: weights(folder))
    assert all(found[name].equal(weight) for name, weight in expected.items()), f"{kind}: {done} was accepted"
    return "equal"
