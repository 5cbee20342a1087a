"""From weights to factors: found on disk, or made, many weights at once where their shapes agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from lasertri.factors.cache import FactorCache, FactorKey
from lasertri.model.targets import Target
from lasertri.ops import BlockFactors, Partition, block_svd
from lasertri.ops.backends import choose_backend
from lasertri.ops.subspaces import subspace_partition
from lasertri.support.checksum import tensor_hash
from lasertri.support.journal import NOTHING, Journal


class Factoring:
    """Factors of the weights of a model that stays as it is, with bases in FP32 (FP64 for an FP64 weight).

    Args:
        backend: that makes them.
        cache: where those of consecutive rows are read and written; None for nowhere.
        inputs: a target -> the second moment of its inputs, for whitened factors; these are not cached.
        journal: where those are read and written instead.
    """

    def __init__(
        self,
        model: nn.Module,
        backend: str,
        cache: FactorCache | None,
        inputs: Callable[[Target], Tensor] | None = None,
        journal: Journal = NOTHING,
    ) -> None:
        self.model, self.backend, self.inputs, self.journal = model, backend, inputs, journal
        self.cache = cache if inputs is None else None
        self._hashes: dict[Target, str] = {}

    def weight(self, target: Target) -> Tensor:
        """Its values, with rows = output features."""
        return target.view(target.parameter(self.model))

    def workspace_bytes(self, target: Target, blocks: int) -> int:
        """FP64 bytes for factoring and scoring one weight, beside its own."""
        (rows, columns), device = target.shape, self.weight(target).device
        height = Partition.consecutive(rows, blocks).heights[0]
        whitening = 0 if self.inputs is None else 8 * (5 * rows * columns + 3 * columns**2)
        plain: int = choose_backend(self.backend, device).module.workspace_bytes(blocks, height, columns, device)
        return plain + whitening

    def alike(self, targets: Iterable[Target]) -> list[list[Target]]:
        """Those whose weights `consecutive` takes together."""
        groups: dict[tuple[torch.Size, torch.dtype, torch.device], list[Target]] = {}
        for target in targets:
            weight = self.weight(target)
            groups.setdefault((weight.shape, weight.dtype, weight.device), []).append(target)
        return list(groups.values())

    def consecutive(self, targets: Sequence[Target], blocks: int) -> list[BlockFactors]:
        """Factors of weights of one shape, each split into K blocks of consecutive rows, made as one batch."""
        weights = [self.weight(target) for target in targets]
        stack = weights[0].unsqueeze(0) if len(weights) == 1 else torch.stack(weights)
        inputs = None if self.inputs is None else torch.stack([self.inputs(target) for target in targets])
        made = _narrow(block_svd(stack, blocks=blocks, inputs=inputs, backend=self.backend), stack.dtype)
        each = [made._replace(basis=basis, sigma=sigma) for basis, sigma in zip(made.basis, made.sigma, strict=True)]
        if self.cache is not None:
            for target, factors in zip(targets, each, strict=True):
                self.cache.store(self._key(target, factors.partition), factors)
        elif self.inputs is not None:
            for target, factors in zip(targets, each, strict=True):
                self.journal.keep((target, blocks), [factors.basis, factors.sigma])
        return each

    def clustered(self, target: Target, blocks: int, dimension: int) -> BlockFactors:
        """Factors of one weight, its rows clustered into K subspaces of this dimension."""
        weight = self.weight(target)
        partition = subspace_partition(weight, blocks=blocks, dimension=dimension)
        return _narrow(block_svd(weight, blocks=partition, backend=self.backend), weight.dtype)

    def from_disk(self, target: Target, blocks: int) -> BlockFactors | None:
        """What `consecutive` made of this very weight before, perhaps in another process."""
        partition, found = Partition.consecutive(target.shape[0], blocks), None
        if self.cache is not None:
            found = self.cache.load(self._key(target, partition))
        elif self.inputs is not None:
            record = self.journal.recall((target, blocks))
            if record is not None:
                found = BlockFactors(record[0], record[1], partition, target.shape[1], whitened=True)
        if found is None:
            return None
        device = self.weight(target).device
        return found._replace(basis=found.basis.to(device), sigma=found.sigma.to(device))

    def _key(self, target: Target, partition: Partition) -> FactorKey:
        stored = target.parameter(self.model)
        if target not in self._hashes:  # from a GPU the weight comes over for it
            self._hashes[target] = tensor_hash(target.part(stored))
        return FactorKey(
            self._hashes[target],
            target.transposed,
            partition,
            target.shape[1],
            choose_backend(self.backend, stored.device).name,
            torch.float64 if stored.dtype == torch.float64 else torch.float32,
        )


def _narrow(factors: BlockFactors, dtype: torch.dtype) -> BlockFactors:
    """Factors of a weight of this dtype, in the precision they are kept in."""
    return factors if dtype == torch.float64 else factors._replace(basis=factors.basis.float())
