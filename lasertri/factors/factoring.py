"""From weights to factors: found on disk, or made, many weights at once where their shapes agree."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor, nn

from lasertri.errors import NotConvergedError
from lasertri.factors.cache import FactorCache, FactorKey
from lasertri.model.parallel import dealt, is_sharded
from lasertri.model.targets import Target
from lasertri.ops import BlockFactors, Partition, block_svd
from lasertri.ops.backends import choose_backend
from lasertri.ops.converging import converging
from lasertri.ops.subspaces import subspace_partition
from lasertri.support.checksum import content_key
from lasertri.support.journal import NOTHING, Journal

WAITING = 1 << 30  # bytes of factors on their way to disk at most: copies, in the host's memory

Factors = TypeVar("Factors", BlockFactors, BlockFactors | None)


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
        self._writer, self._writing = ThreadPoolExecutor(1), deque[tuple[int, Future[None]]]()

    def weight(self, target: Target) -> Tensor:
        """All of it, see `Target.whole`."""
        return target.whole(self.model)

    def workspace_bytes(self, target: Target, blocks: int) -> int:
        """FP64 bytes for factoring and scoring one weight, beside its own."""
        (rows, columns), device = target.shape, target.device(self.model)
        height = Partition.consecutive(rows, blocks).heights[0]
        whitening = 0 if self.inputs is None else 8 * (5 * rows * columns + 3 * columns**2)
        plain: int = choose_backend(self.backend, device).module.workspace_bytes(blocks, height, columns, device)
        return plain + whitening

    def alike(self, targets: Iterable[Target]) -> list[list[Target]]:
        """Those whose weights `consecutive` takes together."""
        groups: dict[tuple[object, ...], list[Target]] = {}
        for target in targets:
            stored = target.parameter(self.model)
            groups.setdefault((target.shape, stored.dtype, stored.device, is_sharded(stored)), []).append(target)
        return list(groups.values())

    def consecutive(self, targets: Sequence[Target], blocks: int) -> list[BlockFactors | None]:
        """Factors of weights of one shape, each split into K blocks of consecutive rows, made as one batch.

        They are on their way to disk, see `stored`. None for a weight that no solver converges on. Sharded ones are
        made one by one, each by one of the processes.
        """
        if is_sharded(targets[0].parameter(self.model)):
            return self._each(targets, functools.partial(self._made, blocks=blocks))
        weights = [self.weight(target) for target in targets]
        stack = weights[0].unsqueeze(0) if len(weights) == 1 else torch.stack(weights)
        inputs = None if self.inputs is None else torch.stack([self.inputs(target) for target in targets])
        try:
            made = self._made(stack, blocks, inputs)
        except NotConvergedError:
            if len(targets) == 1:
                return [None]
            return [factors for target in targets for factors in self.consecutive([target], blocks)]
        each = [made._replace(basis=basis, sigma=sigma) for basis, sigma in zip(made.basis, made.sigma, strict=True)]
        if self.cache is not None:
            for target, factors in zip(targets, each, strict=True):
                key, size = self._key(target, factors.partition), factors.basis.nbytes
                self._wait(WAITING - size)
                self._writing.append((size, self._writer.submit(self.cache.store, key, moved(factors, "cpu"))))
        elif self.inputs is not None:
            for target, factors in zip(targets, each, strict=True):
                self.journal.keep((target, blocks), [factors.basis, factors.sigma])
        return list(each)

    def stored(self) -> None:
        """Wait until all that was made is on disk."""
        self._wait(-1)

    def _wait(self, most: int) -> None:
        """Until no more than so many bytes are."""
        while self._writing and sum(size for size, _ in self._writing) > most:
            _, written = self._writing.popleft()
            failure = written.exception()
            if failure is not None:
                wait([other for _, other in self._writing])
                self._writing.clear()
                raise failure

    def clustered(self, target: Target, blocks: int, dimension: int) -> BlockFactors | None:
        """Factors of one weight, its rows clustered into K subspaces of this dimension; None where none converge."""

        def make(weight: Tensor) -> BlockFactors:
            return self._made(weight, subspace_partition(weight, blocks=blocks, dimension=dimension))

        [found] = self._each([target], make)
        return found

    def _each(self, targets: Sequence[Target], make: Callable[[Tensor], BlockFactors]) -> list[BlockFactors | None]:
        """What is made of every weight; None where no solver converges."""

        def made(weight: Tensor) -> BlockFactors | None:
            try:
                return make(weight)
            except NotConvergedError:
                return None

        stored = [target.parameter(self.model) for target in targets]
        if not is_sharded(stored[0]):
            return [made(self.weight(target)) for target in targets]
        found = dealt(stored, lambda weight: moved(made(weight), "cpu"))
        return [moved(factors, own.device) for factors, own in zip(found, stored, strict=True)]

    def _made(self, weight: Tensor, blocks: int | Partition, inputs: Tensor | None = None) -> BlockFactors:
        """Factors of a weight, or of a stack, which is not worth a slower solver: one of it may need that."""

        def made(backend: str, device: torch.device) -> BlockFactors:
            moments = None if inputs is None else inputs.to(device)
            found = block_svd(weight.to(device), blocks=blocks, inputs=moments, backend=backend)
            return found._replace(basis=found.basis.to(weight.device), sigma=found.sigma.to(weight.device))

        alone = weight.shape[:-2].numel() == 1
        factors = converging(made, self.backend, weight.device) if alone else made(self.backend, weight.device)
        return _narrow(factors, weight.dtype)

    def from_disk(self, target: Target, blocks: int) -> BlockFactors | None:
        """What `consecutive` made of this very weight before, perhaps in another process."""
        partition, found = Partition.consecutive(target.shape[0], blocks), None
        if self.cache is not None:
            found = self.cache.load(self._key(target, partition))
        elif self.inputs is not None:
            record = self.journal.recall((target, blocks))
            if record is not None:
                found = BlockFactors(record[0], record[1], partition, target.shape[1], whitened=True)
        return moved(found, target.parameter(self.model).device)

    def _key(self, target: Target, partition: Partition) -> FactorKey:
        stored = target.parameter(self.model)
        if target not in self._hashes:
            self._hashes[target] = content_key(target.part(stored))
        return FactorKey(
            self._hashes[target],
            target.transposed,
            partition,
            target.shape[1],
            choose_backend(self.backend, stored.device).name,
            torch.float64 if stored.dtype == torch.float64 else torch.float32,
        )


def moved(factors: Factors, device: str | torch.device, *, copy: bool = False) -> Factors:
    """The same on another device, if there are any."""
    if factors is None:
        return factors
    basis, sigma = (side.to(device, copy=copy) for side in (factors.basis, factors.sigma))
    return factors._replace(basis=basis, sigma=sigma)


def _narrow(factors: BlockFactors, dtype: torch.dtype) -> BlockFactors:
    """Factors of a weight of this dtype, in the precision they are kept in."""
    return factors if dtype == torch.float64 else factors._replace(basis=factors.basis.float())
