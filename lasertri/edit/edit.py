"""The chosen truncation of one weight matrix: built, applied, reverted, saved and loaded."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lasertri import ops
from lasertri.edit.candidate import Candidate
from lasertri.edit.laser_svd import laser_factors
from lasertri.errors import LasertriError
from lasertri.factored.exchange import factored, linear_at
from lasertri.factored.layer import FactoredLinear
from lasertri.factors.store import FactorStore
from lasertri.model.editable import require_plain
from lasertri.model.targets import Target
from lasertri.ops import BlockFactors
from lasertri.support.checksum import weight_sha256
from lasertri.version import __version__

logger = logging.getLogger(__name__)

CONFIG_NAME = "lasertri_config.json"
FACTORS_NAME = "lasertri_edit.safetensors"
PANEL = 1024  # rows or columns multiplied at once in FP64
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in ops.DTYPES}


@dataclass(frozen=True)
class Edit:
    """A candidate with its factors: block j of the edited weight is `left[j] @ right[j]`.

    Attributes:
        candidate: which matrix, how many blocks, which ratio.
        left, right: per block `[b, k]` and `[k, n]`, FP32 (FP64 for an FP64 weight); a block of rank 0 is zero.
        order: rows of the weight in the order of the blocks' rows; None for consecutive blocks.
        weight_dtype, weight_sha256: of the base weight as it is stored.
        base, revision: where the base model came from, for the reader.
    """

    candidate: Candidate
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    weight_dtype: torch.dtype
    weight_sha256: str
    base: str = ""
    revision: str | None = None
    order: Tensor | None = None

    @classmethod
    def build(cls, candidate: Candidate, model: nn.Module, factors: FactorStore) -> Edit:
        """Truncate a target's weight to the candidate's ranks."""
        stored = candidate.target.parameter(model)
        weight, order = candidate.target.view(stored), None
        if candidate.compat:
            pairs = [laser_factors(weight, candidate.ranks[0])]
        else:
            known = factors.of(*candidate.factors)
            order = known.partition.order
            pairs = list(truncated_factors(weight, known, candidate.ranks))
        dtype = torch.promote_types(stored.dtype, torch.float32)
        left, right = ([side.to(dtype).cpu().contiguous() for side in sides] for sides in zip(*pairs, strict=True))
        config = getattr(model, "config", None)
        return cls(
            candidate,
            tuple(left),
            tuple(right),
            stored.dtype,
            weight_sha256(candidate.target.part(stored)),
            getattr(config, "_name_or_path", ""),
            getattr(config, "_commit_hash", None),
            None if order is None else order.cpu(),
        )

    @property
    def weight(self) -> Tensor:
        """The edited weight `[rows, columns]` in the base weight's dtype."""
        panels = [
            (panel.double() @ right.double()).to(self.weight_dtype)
            for left, right in zip(self.left, self.right, strict=True)
            for panel in left.split(PANEL)
        ]
        weight = torch.cat(panels)
        return weight if self.order is None else torch.empty_like(weight).index_copy_(0, self.order, weight)

    def apply(self, model: nn.Module) -> None:
        """Write the edited weight into the model.

        Raises:
            LasertriError: the model's weight is not the one the edit was made of.
        """
        self.candidate.target.write(self._base_weight(model), self.weight)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Apply within, then restore the base weight bit for bit; a model that has the edit keeps it."""
        target, weight = self.candidate.target, self.weight
        if torch.equal(target.view(self._stored(model)).cpu(), weight):
            yield
            return
        self._base_weight(model)
        with replaced(target, model, weight):
            yield

    def save(self, directory: str | Path) -> None:
        """Write `lasertri_config.json` and `lasertri_edit.safetensors`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {f"{name}.{j}": t for name in ("left", "right") for j, t in enumerate(getattr(self, name))}
        if self.order is not None:
            tensors["order"] = self.order
        path = directory / FACTORS_NAME
        safetensors.torch.save_file(tensors, path)
        config = {
            "lasertri_version": __version__,
            "base_model": self.base,
            "base_revision": self.revision,
            "target": asdict(self.candidate.target),
            "blocks": self.candidate.blocks,
            "ratio": self.candidate.ratio,
            "clustered": self.candidate.clustered,
            "compat": self.candidate.compat,
            "ranks": self.candidate.ranks,
            "weight_dtype": str(self.weight_dtype).removeprefix("torch."),
            "weight_sha256": self.weight_sha256,
        }
        config["sha256"] = _checksum(config, path)
        (directory / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Edit:
        """Read what `save` wrote.

        Raises:
            LasertriError: a file is missing, damaged, or was changed since it was written.
        """
        directory = Path(directory)
        config, path = _read_config(directory / CONFIG_NAME), directory / FACTORS_NAME
        try:
            target = Target.from_dict(config["target"])
            options = (config[name] for name in ("blocks", "ratio", "clustered", "compat"))
            candidate = Candidate(target, *options)
            dtype, expected = DTYPES[config["weight_dtype"]], config.pop("sha256")
            checksum, base, revision = config["weight_sha256"], config["base_model"], config["base_revision"]
        except (KeyError, TypeError) as error:
            raise LasertriError(f"{directory / CONFIG_NAME}: expected the fields of an edit ({error!r})") from error
        try:
            tensors = safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise LasertriError(f"{path}: expected the factors of an edit, but they cannot be read: {error}") from error
        if _checksum(config, path) != expected:
            raise LasertriError(f"{directory}: the edit was changed after it was written; adapt again or copy it again")
        blocks = range(candidate.blocks)
        return cls(
            candidate,
            tuple(tensors[f"left.{j}"] for j in blocks),
            tuple(tensors[f"right.{j}"] for j in blocks),
            dtype,
            checksum,
            base,
            revision,
            tensors.get("order"),
        )

    def _stored(self, model: nn.Module) -> nn.Parameter:
        """The target's parameter, once it is known to be there in the edit's shape and dtype."""
        target = self.candidate.target
        try:
            stored = target.parameter(model)
            shape = target.view(stored).shape
        except (AttributeError, IndexError) as error:
            raise LasertriError(f"expected a model with {target}, the edit's target, but it has none") from error
        require_plain(target.name, stored)
        if stored.dtype != self.weight_dtype or shape != target.shape:
            raise LasertriError(
                f"expected {target} as {list(target.shape)} in {self.weight_dtype}, got {list(shape)} in "
                f"{stored.dtype}; load the base model with that dtype"
            )
        return stored

    def _base_weight(self, model: nn.Module) -> nn.Parameter:
        """The same, once its values are known to be those the edit was made of."""
        stored, target = self._stored(model), self.candidate.target
        if weight_sha256(target.part(stored)) != self.weight_sha256:
            origin = f" ({self.base})" if self.base else ""
            raise LasertriError(
                f"expected the weight that the edit was made of{origin}, but {target} of this model has other "
                "values; apply the edit to its own base, once"
            )
        return stored


@contextmanager
def all_applied(edits: Sequence[Edit], model: nn.Module) -> Iterator[None]:
    """Apply several edits within, each of another matrix."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(model))
        yield


def factored_edits(edits: Sequence[Edit], model: nn.Module) -> dict[str, FactoredLinear]:
    """By module path a layer for every edit that pays; of the others a warning says that they stay whole."""
    layers = {}
    for edit in edits:
        target = edit.candidate.target
        if not target.is_layer(model):
            logger.warning("%s: only a whole linear layer can be kept as factors; its weight is written whole", target)
            continue
        linear = linear_at(model, target.module)
        layer = factored(linear, zip(edit.left, edit.right, strict=True), edit.weight, order=edit.order)
        if layer is None:
            logger.warning("%s: its factors would not be smaller than the weight, which is written whole", target)
        else:
            layers[target.module] = layer
    return layers


@contextmanager
def replaced(target: Target, model: nn.Module, weight: Tensor) -> Iterator[None]:
    """Give a target another weight within, then restore its own bit for bit."""
    stored = target.parameter(model)
    original = target.view(stored).clone()
    try:
        target.write(stored, weight)
        yield
    finally:
        target.write(stored, original)


def truncated_factors(weight: Tensor, factors: BlockFactors, ranks: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of every block the truncation's two factors, `[b, k]` and `[k, n]`, FP64."""
    offsets, order = factors.partition.offsets, factors.partition.order
    for j, (rank, length) in enumerate(zip(ranks, factors.lengths, strict=True)):
        rows = slice(offsets[j], offsets[j + 1])
        block = weight[rows if order is None else order[rows].to(weight.device)]
        basis = factors.basis[j, :, : min(rank, length)].double()
        if factors.side == "left":
            basis = torch.linalg.qr(basis[: block.shape[0]]).Q  # orthonormal in FP64 again
            yield basis, torch.cat([basis.mT @ panel.double() for panel in block.split(PANEL, dim=1)], dim=1)
        else:
            basis = torch.linalg.qr(basis).Q
            yield torch.cat([panel.double() @ basis for panel in block.split(PANEL)]), basis.mT


def _checksum(config: dict[str, Any], factors: Path) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode() + factors.read_bytes()).hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise LasertriError(
            f"{path.parent}: expected a folder with a saved edit, found no {path.name}; where no edit was accepted "
            "there is none"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LasertriError(f"{path}: expected the description of an edit, but it cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise LasertriError(f"{path}: expected a JSON object that describes an edit")
    return config
