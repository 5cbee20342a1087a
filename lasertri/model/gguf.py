"""Models in GGUF files: transformers takes their quantisation back, and what is loaded is an ordinary model."""

from __future__ import annotations

import logging
import re
from pathlib import Path, PurePosixPath
from typing import Any

import transformers
from huggingface_hub import hf_hub_download
from transformers import PreTrainedModel
from transformers.utils.hub import extract_commit_hash
from transformers.utils.import_utils import is_gguf_available

from lasertri.errors import LasertriError
from lasertri.model.files import MODEL, config_fields
from lasertri.support.paths import check_path
from lasertri.support.shown import reason

logger = logging.getLogger(__name__)

SUFFIX = ".gguf"
EXPECTED = "a GGUF file, or USER/REPOSITORY/FILE.gguf on the hub"
SCALING = re.compile(r"rope_freqs|rope_factors|rope\.scaling\.factor")
PART = re.compile(r"-\d{5}-of-(?!00001\.)\d{5}\.gguf$")


def is_gguf(name: str | Path) -> bool:
    """Whether a model's name is that of a GGUF file: its path, or `USER/REPOSITORY/FILE.gguf` on the hub."""
    return Path(name).suffix.lower() == SUFFIX and not Path(name).is_dir()


def place_and_file(name: str | Path) -> tuple[str, str]:
    """How transformers names it: a folder or a repository, and the file there, its `gguf_file`."""
    path = Path(name)
    if path.is_file() or not _of_hub(name):
        return str(path.parent), path.name
    user, repository, *file = PurePosixPath(name).parts
    return f"{user}/{repository}", "/".join(file)


def read_from(name: str | Path, revision: str | None) -> tuple[str | Path, dict[str, Any]]:
    """What transformers is to load a model from, and with which options: a GGUF file, or any other model as it is.

    Raises:
        LasertriError: there is no such file, or nothing that reads it.
    """
    check_path(MODEL, name)
    if not is_gguf(name):
        return name, {"revision": revision}
    path = _local(name, revision)
    return path.parent, {"gguf_file": str(path)}  # of a name alone transformers looks into the working directory first


def made_plain(model: PreTrainedModel, name: str | Path, path: str) -> None:
    """Take off the mark of quantisation, under which nothing is saved, and say where it came from.

    A scaling of positions, which transformers passes over for most architectures, is warned of.

    Args:
        name: that was asked for.
        path: of the file itself.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    kinds = {value for field, value in config_fields(model.config.to_dict()) if field.endswith("rope_type")}
    scaling = [own for own in (*reader.fields, *(tensor.name for tensor in reader.tensors)) if SCALING.search(own)]
    if scaling and kinds <= {"default"}:
        logger.warning(
            "%s: transformers passes over %s, which scales positions: long texts are read as if it were not there",
            name,
            scaling[0],
        )
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    model.config._name_or_path = str(name)
    model.config._commit_hash = extract_commit_hash(path, None)


def dequantising() -> dict[str, Any]:
    """Options by which transformers leaves no weight in blocks, as it can where its kernels are installed."""
    config: Any = getattr(transformers, "GgufConfig", None)  # before which it knew no other way
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _of_hub(name: str | Path) -> bool:
    return len(PurePosixPath(name).parts) > 2 and not str(name).startswith(("/", ".", "~"))


def _local(name: str | Path, revision: str | None) -> Path:
    """The file, downloaded where it is on the hub."""
    if not is_gguf_available():
        raise LasertriError(f"{name}: expected gguf, which reads such files; pip install 'lasertri[gguf]'")
    if PART.search(str(name)):
        raise LasertriError(
            f"{name}: expected a whole GGUF file, got a part of one; join them by llama-gguf-split --merge"
        )
    if not str(name).endswith(SUFFIX):  # which transformers looks for as it is written
        raise LasertriError(f"{name}: expected a name that ends in {SUFFIX}; rename it")
    path = Path(name).absolute()
    if path.is_file():
        return path
    if not _of_hub(name):
        raise LasertriError(f"expected {EXPECTED}, found no file {str(name)!r}")
    repository, file = place_and_file(name)
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (OSError, ValueError) as error:  # those of the hub are of these
        raise LasertriError(f"expected {EXPECTED}, got {str(name)!r}: {reason(error)}") from error
