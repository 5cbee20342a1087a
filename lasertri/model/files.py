"""The files of a model's folder: which of them is at fault, and how, where a library cannot read them."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import Any

import tokenizers
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import nn

from lasertri.errors import LasertriError
from lasertri.model.parallel import here, is_divided, part_like
from lasertri.model.quantised import is_plain
from lasertri.support.memory import is_out_of_memory
from lasertri.support.paths import check_path
from lasertri.support.shown import LONGEST, reason, shown

LFS = b"version https://git-lfs"
INDEX_NAME = "model.safetensors.index.json"
TOKENIZERS = re.compile(r"tokenizer|vocab|merges|special_tokens|added_tokens|\.model$")  # names of a tokenizer's files
MODEL = "a hub id, a folder with a Hugging Face model or a GGUF file"
COMPUTED = re.compile(r"(inv_freq|masked_bias|position_ids|attn\.bias|attention\.bias)$")  # buffers of old checkpoints


def local_folder(name: str | Path, revision: str | None = None) -> Path | None:
    """The folder itself, or where the hub's files are kept once they were downloaded."""
    check_path(MODEL, name)
    if Path(name).is_dir():
        return Path(name)
    try:
        cached = try_to_load_from_cache(str(name), "config.json", revision=revision)
    except ValueError:  # no hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


@contextmanager
def reading(
    name: str | Path, what: str, advice: str, *, revision: str | None = None, tokenizer: bool = False
) -> Iterator[None]:
    """Within, whatever a library makes of a model's files is one sentence.

    Args:
        what: the file, or the files, that are read.
        advice: what to do where no file is damaged.
        tokenizer: whether they are the tokenizer's.

    Raises:
        LasertriError: in place of any other error but those of memory.
    """
    try:
        yield
    except LasertriError:
        raise
    except Exception as error:  # each library has its own, and tokenizers raises no more than this
        if is_out_of_memory(error):
            raise
        folder = local_folder(name, revision)
        damage = None if folder is None else damaged(folder, tokenizer=tokenizer)
        if damage is not None:
            raise LasertriError(f"{name}: {damage}") from error
        value = None if folder is None else _unknown_value(folder, error)
        raise LasertriError(f"{name}: {what} cannot be used: {value or reason(error)}; {advice}") from error


def damaged(folder: Path, *, tokenizer: bool = False) -> str | None:
    """Which file of a model, or of its tokenizer, cannot be what it is called, and why; None where all can."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in READERS or path.is_dir() or bool(TOKENIZERS.search(path.name)) != tokenizer:
            continue
        with path.open("rb") as file:
            begin = file.read(len(LFS))
        if begin == LFS:
            return f"{path.name} is a Git LFS pointer, not the file itself; run git lfs pull there, or download it"
        problem = "it is empty" if not begin else READERS[path.suffix](path)
        if problem:
            return f"{path.name} cannot be read ({problem}); download it again"
    return None if tokenizer else _missing_shard(folder)


def tensor_files(folder: Path) -> dict[str, Path]:
    """Names of the tensors in a folder's safetensors files, as they are stored, and the file of each."""
    index, path = folder / INDEX_NAME, folder / "model.safetensors"
    if index.exists():
        return {name: folder / file for name, file in indexed(index).items()}
    if not path.exists():
        return {}
    with safe_open(path, "pt") as file:
        return dict.fromkeys(file.keys(), path)


def indexed(index: Path) -> dict[str, str]:
    """The file of every tensor, as the index of a checkpoint in several files names it.

    Raises:
        LasertriError: it cannot be read, or names a file that lies elsewhere.
    """
    problem = _json_problem(index)
    if problem:
        raise LasertriError(f"{index.parent}: {index.name} cannot be read ({problem}); download it again")
    files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    for file in files.values():
        beside = isinstance(file, str) and file.isprintable() and len(file) <= LONGEST
        if not beside or not PurePath(file).name or PurePath(file).is_absolute() or ".." in PurePath(file).parts:
            raise LasertriError(
                f"{index.parent}: {index.name} names {shown(file)}, expected files beside it alone; take another copy"
            )
    return files


def require_own_files(folder: Path) -> None:
    """Raise where a checkpoint in several files would be read from elsewhere."""
    for index in sorted(folder.glob("*.index*.json")):
        indexed(index)


def changed_since(model: nn.Module, base: str, revision: str | None = None) -> str | None:
    """A parameter with other values than where the model came from; None where none is known to have.

    One that is stored under another name, as experts are, is not looked at.
    """
    folder, parameters = local_folder(base, revision) if base else None, dict(model.named_parameters())
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    opened: dict[Path, Any] = {}
    with ExitStack() as stack:
        for name, path in (tensor_files(folder) if folder is not None else {}).items():
            own = next((key for key in (name, prefix + name) if key in parameters), None)
            if own is None or not path.exists():
                continue
            stored = parameters[own]
            if not is_plain(stored) and not is_divided(stored):  # quantised as it was loaded
                continue
            if path not in opened:
                opened[path] = stack.enter_context(safe_open(path, "pt"))
            parameter, found = here(stored).detach().cpu(), part_like(stored, opened[path].get_tensor(name))
            if not torch.equal(parameter, found.to(parameter.dtype)):
                return own
    return None


def _json_problem(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {reason(error)}"
    objects = ("config.json", "generation_config.json", "tokenizer_config.json")
    if (path.name in objects or ".index" in path.name) and not isinstance(content, dict):
        return f"expected a JSON object, got a {type(content).__name__}"
    if path.name == "tokenizer.json":
        try:
            tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # it raises no more than this
            return f"it is damaged, or later than tokenizers {tokenizers.__version__} reads: {reason(error)}"
    if ".index" in path.name and not isinstance(content.get("weight_map"), dict):
        return "it has no weight_map"
    return None


def _safetensors_problem(path: Path) -> str | None:
    try:
        with safe_open(path, "pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"it was cut, or is no safetensors file: {reason(error)}"


def _pickle_problem(path: Path) -> str | None:
    with path.open("rb") as file:
        begin = file.read(2)
    if zipfile.is_zipfile(path) or begin == b"\x80\x02":  # of before torch 1.6
        return None
    return "it was cut, or is no PyTorch file"


READERS: dict[str, Any] = {
    ".json": _json_problem,
    ".safetensors": _safetensors_problem,
    ".bin": _pickle_problem,
    ".model": lambda _: None,
}


def _missing_shard(folder: Path) -> str | None:
    absent = sorted({path.name for path in tensor_files(folder).values() if not path.exists()})
    return f"{absent[0]} is missing, which {INDEX_NAME} names; download it" if absent else None


def _unknown_value(folder: Path, error: Exception) -> str | None:
    """Of a `KeyError`, which field of the configuration has that value: an activation, a kind of rotary embedding."""
    path = folder / "config.json"
    if not isinstance(error, KeyError) or not error.args or not path.exists():
        return None
    for field, value in config_fields(json.loads(path.read_text(encoding="utf-8"))):
        if value == error.args[0]:
            return f"{field} is {value!r}, which transformers {transformers.__version__} does not know"
    return None


def config_fields(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a configuration, with its path."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from config_fields(value, f"{path}.{name}".removeprefix("."))
    else:
        yield path, config
