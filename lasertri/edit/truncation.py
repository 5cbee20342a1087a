"""The chosen truncation of one weight matrix: built, applied, reverted, saved and loaded."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lasertri import ops
from lasertri.edit.candidate import Candidate
from lasertri.edit.edit import CONFIG_NAME, FACTORS_NAME, Edit, replaced, write_config
from lasertri.edit.reading import checked, described, field_of, read_tensors
from lasertri.edit.spectrum import Spectrum
from lasertri.errors import LasertriError
from lasertri.factored.exchange import factored, linear_at
from lasertri.factored.layer import FactoredLinear
from lasertri.factors.store import FactorStore
from lasertri.model.parallel import part_like, whole
from lasertri.model.targets import Target
from lasertri.ops import Partition
from lasertri.ops.laser import laser_factors
from lasertri.ops.pairs import multiplied, truncated_factors
from lasertri.support.checksum import weight_sha256
from lasertri.support.shown import shown
from lasertri.version import __version__

logger = logging.getLogger(__name__)

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in ops.DTYPES}


@dataclass(frozen=True)
class Truncation(Edit):
    """A candidate with its factors: block j of the edited weight is `left[j] @ right[j]`.

    Attributes:
        candidate: which matrix, how many blocks, which ratio.
        left, right: per block `[b, k]` and `[k, n]`, FP32 (FP64 for an FP64 weight); a block of rank 0 is zero.
        order: rows of the weight in the order of the blocks' rows; None for consecutive blocks.
        sigma: singular values of the weight's blocks `[K, r]`, where they are known.
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
    sigma: Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def build(cls, candidate: Candidate, model: nn.Module, factors: FactorStore) -> Truncation:
        """Truncate a target's weight to the candidate's ranks."""
        stored = candidate.target.parameter(model)
        weight, order, sigma = candidate.target.whole(model), None, None
        if candidate.compat:
            pairs = [laser_factors(weight, candidate.ranks[0])]
        else:
            known = factors.of(*candidate.factors_key)
            order, sigma = known.partition.order, known.sigma
            pairs = list(truncated_factors(weight, known, candidate.ranks))
        dtype = torch.promote_types(stored.dtype, torch.float32)
        left, right = ([side.to(dtype).cpu().contiguous() for side in sides] for sides in zip(*pairs, strict=True))
        config = getattr(model, "config", None)
        return cls(
            candidate,
            tuple(left),
            tuple(right),
            stored.dtype,
            weight_sha256(candidate.target.part(whole(stored))),
            getattr(config, "_name_or_path", ""),
            getattr(config, "_commit_hash", None),
            None if order is None else order.cpu(),
            None if sigma is None else sigma.cpu(),
        )

    @property
    def targets(self) -> list[Target]:
        """The one matrix."""
        return [self.candidate.target]

    def to_dict(self) -> dict[str, object]:
        """How it is named in reports."""
        return self.candidate.to_dict()

    def singular_values(self, model: nn.Module) -> list[Spectrum]:
        """See `Edit`."""
        if self.sigma is None:
            return []
        ranks = torch.tensor(self.candidate.ranks)
        after = self.sigma.where(torch.arange(self.sigma.shape[1]) < ranks[:, None], 0)
        ends = {place for rank in self.candidate.ranks for place in (rank, rank + 1)}
        return [Spectrum.before_and_after(self.candidate.target, self.sigma, after, ends)]

    @property
    def weight(self) -> Tensor:
        """The edited weight `[rows, columns]` in the base weight's dtype."""
        return multiplied(zip(self.left, self.right, strict=True), self.weight_dtype, self.order)

    def apply(self, model: nn.Module) -> None:
        """Write the edited weight into the model.

        Raises:
            LasertriError: the model's weight is not the one the edit was made of.
        """
        self._require_base(model)
        stored = self.candidate.target.parameter(model)
        self.candidate.target.write(stored, part_like(stored, self.weight))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Apply within, then restore the base weight bit for bit; a model that has the edit keeps it."""
        target, weight = self.candidate.target, self.weight
        if torch.equal(target.view(self._stored(model)).cpu(), weight):
            yield
            return
        self._require_base(model)
        with replaced(target, model, part_like(target.parameter(model), weight)):
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
            "kind": "truncate",
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
        write_config(directory / CONFIG_NAME, config, path)

    @classmethod
    def read(cls, directory: Path, config: dict[str, Any]) -> Truncation:
        """See `Edit.load`."""
        path = directory / FACTORS_NAME
        with described(directory / CONFIG_NAME):
            candidate = Candidate.from_dict(config)
            dtype = DTYPES[field_of(config, "weight_dtype", str)]
            checksum, base = (field_of(config, name, str) for name in ("weight_sha256", "base_model"))
            revision = field_of(config, "base_revision", str, NoneType)
        tensors = read_tensors(path)
        pairs, order = _checked_factors(path, tensors, candidate, torch.promote_types(dtype, torch.float32))
        left, right = zip(*pairs, strict=True)
        return cls(candidate, left, right, dtype, checksum, base, revision, order)

    def _stored(self, model: nn.Module) -> Tensor:
        """All of the target's parameter, once it is known to be there in the edit's shape and dtype."""
        target = self.candidate.target
        try:
            target.require_plain(model, sharded=True)
            stored = whole(target.parameter(model))
            shape = target.view(stored).shape
        except (AttributeError, IndexError, RuntimeError) as error:  # no such parameter, or no matrix
            raise LasertriError(f"expected a model with {target}, the edit's target, but it has none") from error
        if stored.dtype != self.weight_dtype or shape != target.shape:
            raise LasertriError(
                f"expected {target} as {list(target.shape)} in {self.weight_dtype}, got {list(shape)} in "
                f"{stored.dtype}; load the base model with that dtype"
            )
        return stored

    def _require_base(self, model: nn.Module) -> None:
        """Check that the target's weight is the one that the edit was made of."""
        target = self.candidate.target
        if weight_sha256(target.part(self._stored(model))) != self.weight_sha256:
            origin = f" ({shown(self.base)})" if self.base else ""
            raise LasertriError(
                f"expected the weight that the edit was made of{origin}, but {target} of this model has other "
                "values; apply the edit to its own base, once"
            )


def _checked_factors(
    path: Path, tensors: Mapping[str, Tensor], candidate: Candidate, dtype: torch.dtype
) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
    """Both factors of every block, and the order of the rows, once they are known to be a candidate's."""
    (rows, columns), blocks, order = candidate.target.shape, candidate.blocks, tensors.get("order")
    clustered = candidate.clustered and blocks > 1 and candidate.dimension != 0  # else blocks are consecutive
    if len(tensors) != 2 * blocks + clustered:
        raise LasertriError(f"{path}: expected two factors of {blocks} blocks, got {len(tensors)} tensors")
    pairs = [(tensors.get(f"left.{j}"), tensors.get(f"right.{j}")) for j in range(blocks)]
    heights = [0 if left is None or left.dim() == 0 else len(left) for left, _ in pairs]
    if clustered:
        order = checked(path, "order", order, (rows,), torch.int64)
        try:
            Partition((0, *itertools.accumulate(heights)), order)
        except LasertriError as error:
            raise LasertriError(f"{path}: {error}; copy the edit again") from error
    else:
        heights = list(Partition.consecutive(rows, blocks).heights)
    made = []
    for j, ((left, right), height, own) in enumerate(zip(pairs, heights, candidate.ranks, strict=True)):
        rank = min(own, height, columns)
        left = checked(path, f"left.{j}", left, (height, rank), dtype)
        made.append((left, checked(path, f"right.{j}", right, (rank, columns), dtype)))
    return made, order


def factored_edits(edits: Sequence[Edit], model: nn.Module) -> dict[str, FactoredLinear]:
    """By module path a layer for every edit that pays; of the others a warning says that they stay whole."""
    layers = {}
    for edit in edits:
        if not isinstance(edit, Truncation):
            raise LasertriError(
                f"expected truncations to keep as factors, got a {edit.to_dict()['kind']}; save it without factored"
            )
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
