"""The factors of every (target, partition), computed once and kept while they fit the memory budget."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lasertri.errors import LasertriError
from lasertri.factors.cache import FactorCache, FactorKey
from lasertri.model.targets import Target
from lasertri.ops import BlockFactors, Partition, block_svd, project_blocks
from lasertri.ops.backends import choose_backend
from lasertri.ops.subspaces import subspace_partition

logger = logging.getLogger(__name__)

Key = tuple[Target, int, int | None]
Kept = TypeVar("Kept", BlockFactors, Tensor)


class FactorStore:
    """Factors by target, number of blocks and dimension (None for consecutive rows), with bases in FP32.

    Those over the budget are made again when asked for.

    Args:
        budget: bytes for the FP64 workspace of one matrix and for what is kept together.
        targets, block_counts: what will be asked for.
        cache: keeps factors of consecutive rows on disk.
        files: the checkpoint that the model was loaded from and still equals, if that is known.

    Raises:
        LasertriError: the budget is below the workspace that one of them needs, or the backend cannot run.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Iterable[Target],
        block_counts: Sequence[int],
        *,
        budget: int,
        backend: str = "auto",
        cache: FactorCache | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        self.model, self.backend, self.workspace, self._warned = model, backend, 0, False
        for target in targets:
            device = target.parameter(model).device
            workspace_bytes = choose_backend(backend, device).module.workspace_bytes
            for blocks in block_counts:
                if blocks > target.shape[0]:
                    continue
                columns, height = target.shape[1], Partition.consecutive(target.shape[0], blocks).heights[0]
                needed = workspace_bytes(blocks, height, columns, device)
                if needed > budget:
                    raise LasertriError(
                        f"expected a memory budget of at least {needed / 2**30:.3g} GiB for {target} at K = {blocks}, "
                        f"got {budget / 2**30:.3g} GiB"
                    )
                self.workspace = max(self.workspace, needed)
        self.free = budget - self.workspace
        self._cache, self._files = cache, files
        self._sha256: dict[Target, str] = {}
        self._factors: dict[Key, BlockFactors] = {}
        self._projected: dict[Key, Tensor] = {}

    def of(self, target: Target, blocks: int, dimension: int | None = None) -> BlockFactors:
        """Factors of the target's weight, its rows split into K blocks."""
        key = target, blocks, dimension
        if key not in self._factors:
            return self._keep(self._factors, key, self._factored(target, blocks, dimension))
        return self._factors[key]

    def projected(self, target: Target, blocks: int, dimension: int | None = None) -> Tensor | None:
        """W_j Q_j of every block, `[m, r]`, where its blocks are tall; what `linear_blocks` takes."""
        key, factors = (target, blocks, dimension), self.of(target, blocks, dimension)
        if factors.side == "left":
            return None
        if key not in self._projected:
            return self._keep(self._projected, key, project_blocks(self._weight(target), factors))
        return self._projected[key]

    def prepare(self, targets: Iterable[Target], blocks: int) -> None:
        """Factor these targets' weights, those of equal shape together, while they fit the budget."""
        equal: dict[tuple[torch.Size, torch.dtype, torch.device], list[Target]] = {}
        for target in targets:
            weight, key = self._weight(target), (target, blocks, None)
            cached = None if key in self._factors else self._cached(target, blocks)
            if cached is not None:
                self._keep(self._factors, key, cached)
            elif key not in self._factors:
                equal.setdefault((weight.shape, weight.dtype, weight.device), []).append(target)
        for ((rows, columns), _, device), members in equal.items():
            height = Partition.consecutive(rows, blocks).heights[0]
            workspace = choose_backend(self.backend, device).module.workspace_bytes(blocks, height, columns, device)
            room = self.workspace + self.free // 2  # the other half is for what is kept
            size = max(1, room // (workspace + self._weight(members[0]).nbytes))
            for start in range(0, len(members), size):
                group = members[start : start + size]
                if self.free < len(group) * 4 * blocks * min(height, columns) ** 2:
                    return
                stack = torch.stack([self._weight(target) for target in group])
                factors = block_svd(stack, blocks=blocks, backend=self.backend)
                for target, basis, sigma in zip(group, factors.basis, factors.sigma, strict=True):
                    single = _narrow(factors._replace(basis=basis, sigma=sigma), stack.dtype)
                    self._keep(self._factors, (target, blocks, None), single)
                    self._store(target, single)

    def retain(self, keys: Iterable[Key]) -> None:
        """Drop everything but what belongs to these keys."""
        wanted = set(keys)
        for key in self._factors.keys() - wanted:
            self.free += _bytes(self._factors.pop(key))
        for key in self._projected.keys() - wanted:
            self.free += _bytes(self._projected.pop(key))

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept."""
        return sum(map(_bytes, self._factors.values())) + sum(map(_bytes, self._projected.values()))

    def _factored(self, target: Target, blocks: int, dimension: int | None) -> BlockFactors:
        weight = self._weight(target)
        if dimension is not None:
            partition = subspace_partition(weight, blocks=blocks, dimension=dimension)
            return _narrow(block_svd(weight, blocks=partition, backend=self.backend), weight.dtype)
        cached = self._cached(target, blocks)
        if cached is not None:
            return cached
        factors = _narrow(block_svd(weight, blocks=blocks, backend=self.backend), weight.dtype)
        self._store(target, factors)
        return factors

    def _cached(self, target: Target, blocks: int) -> BlockFactors | None:
        if self._cache is None:
            return None
        weight, partition = self._weight(target), Partition.consecutive(target.shape[0], blocks)
        found = self._cache.load(self._key(target, partition))
        if found is None:
            return None
        return found._replace(basis=found.basis.to(weight.device), sigma=found.sigma.to(weight.device))

    def _store(self, target: Target, factors: BlockFactors) -> None:
        if self._cache is not None:
            self._cache.store(self._key(target, factors.partition), factors)

    def _key(self, target: Target, partition: Partition) -> FactorKey:
        """What the cache knows these factors by."""
        stored = target.parameter(self.model)
        if target not in self._sha256 and self._cache is not None:
            self._sha256[target] = self._cache.sha256(str(target), target.part(stored), self._files or None)
        backend = choose_backend(self.backend, stored.device).name
        dtype = torch.float64 if stored.dtype == torch.float64 else torch.float32
        return FactorKey(self._sha256[target], target.transposed, partition, target.shape[1], backend, dtype)

    def _weight(self, target: Target) -> Tensor:
        return target.view(target.parameter(self.model))

    def _keep(self, kept: dict[Key, Kept], key: Key, made: Kept) -> Kept:
        size = _bytes(made)
        if size <= self.free:
            kept[key] = made
            self.free -= size
        elif not self._warned:
            self._warned = True
            logger.warning(
                "The memory budget does not hold the factors of all targets; some are made again for every batch. "
                "A larger --memory-budget saves that time."
            )
        return made


def _bytes(made: BlockFactors | Tensor) -> int:
    return made.nbytes if isinstance(made, Tensor) else made.basis.nbytes + made.sigma.nbytes


def _narrow(factors: BlockFactors, dtype: torch.dtype) -> BlockFactors:
    return factors if dtype == torch.float64 else factors._replace(basis=factors.basis.float())
