"""Folders of edits, all damaged: one is refused, or it does what the sound one does.

Half of them have the right checksum for what was damaged: what these do is at least finite.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
from pathlib import Path
from random import Random

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import make_model, make_samples, make_tokenizer

from fuzz.damage import changed, damage
from fuzz.folder import kept_folder
from fuzz.ops import odd_tensor
from fuzz.outcome import Refused, attempt
from lasertri import adapt
from lasertri.edit.edit import CONFIG_NAME, Edit, write_config

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
    folder = kept_folder()
    result.edit.save(folder)
    return folder, weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those that a folder's edit makes of the model's."""
    edited = copy.deepcopy(model())
    Edit.load(folder).apply(edited)
    return edited.state_dict()


def tamper(random: Random, folder: Path) -> None:
    """Change a tensor, or what the description says, and write the checksum that this has."""
    [path] = folder.glob("*.safetensors")
    try:
        tensors, config = load_file(path), json.loads((folder / CONFIG_NAME).read_text())
        if random.random() < 0.5:
            name = random.choice(sorted(tensors))
            tensors[name] = odd_tensor(random, tensors[name])
            save_file({name: t for name, t in tensors.items() if isinstance(t, torch.Tensor)}, path)
        else:
            name = random.choice(sorted(config.keys() - {"sha256", "kind"}))
            config[name] = changed(random, config[name])
        config.pop("sha256", None)
        write_config(folder / CONFIG_NAME, config, path)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise Refused("nobody could write that") from error


def case(random: Random, folder: Path) -> str:
    """Damage a copy, load it, apply it."""
    kind = random.choice(sorted(KINDS))
    sound, expected = saved(kind)
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    if random.random() < 0.5:
        tamper(random, folder)
        found = attempt(lambda: weights(folder))
        assert all(weight.isfinite().all() for weight in found.values())
        return "finite"
    done = damage(random, folder, [saved(other)[0] for other in sorted(KINDS) if other != kind])
    found = attempt(lambda: weights(folder))
    assert all(found[name].equal(weight) for name, weight in expected.items()), f"{kind}: {done} was accepted"
    return "equal"
