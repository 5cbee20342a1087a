"""The factors of every (target, partition), made once and kept while they fit the memory budget."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor, nn

from lasertri.errors import LasertriError, NotConvergedError
from lasertri.factors.budget import Budget
from lasertri.factors.cache import FactorCache
from lasertri.factors.factoring import Factoring, moved
from lasertri.factors.memo import Memo
from lasertri.model.parallel import is_sharded
from lasertri.model.targets import Target
from lasertri.ops import BlockFactors, Partition, project_blocks
from lasertri.ops.backends import named
from lasertri.support.journal import NOTHING, Journal
from lasertri.support.memory import as_memory_allows
from lasertri.support.sharing import everyones, processes, shared

logger = logging.getLogger(__name__)

Key = tuple[Target, int, int | None]


class FactorStore:
    """Factors by target, number of blocks and dimension (None for consecutive rows), with bases in FP32.

    Those over the budget are made again when asked for.

    Args:
        budget: bytes for the FP64 workspace of one matrix and for what is kept together.
        targets, block_counts: what will be asked for.
        cache: keeps factors of consecutive rows on disk.
        inputs: a target -> the second moment of its inputs, for whitened factors of consecutive rows.
        journal: keeps those.

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
        inputs: Callable[[Target], Tensor] | None = None,
        journal: Journal = NOTHING,
    ) -> None:
        self.backend = named(backend)
        self._factoring = Factoring(model, self.backend, cache, inputs, journal)
        workspace = 0
        for target, blocks in ((t, k) for t in targets for k in block_counts if k <= t.shape[0]):
            needed = self._factoring.workspace_bytes(target, blocks)
            if needed > budget:
                raise LasertriError(
                    f"expected a memory budget of at least {needed / 2**30:.3g} GiB for {target} at K = {blocks}, "
                    f"got {budget / 2**30:.3g} GiB"
                )
            workspace = max(workspace, needed)
        self.budget = Budget(budget, workspace)
        self._factors: Memo[Key, BlockFactors] = Memo(self.budget, _bytes)
        self._projected: Memo[Key, Tensor] = Memo(self.budget, lambda projected: projected.nbytes)
        self._failed = set[Key]()

    def of(self, target: Target, blocks: int, dimension: int | None = None) -> BlockFactors:
        """Factors of the target's weight, its rows split into K blocks.

        Raises:
            NotConvergedError: no solver converges on it, see `usable`.
        """
        key = target, blocks, dimension

        def make() -> BlockFactors:
            found = None if key in self._failed else self._made(*key)
            if found is None:
                self._failed.add(key)
                raise NotConvergedError(f"no eigensolver and no SVD converges on {target}, K = {blocks}; leave it out")
            return found

        return self._factors.get(key, make)

    def usable(self, keys: Iterable[Key]) -> list[Key]:
        """Those whose factors can be made; of the others a warning tells.

        Raises:
            NotConvergedError: there are none.
        """
        wanted = list(dict.fromkeys(keys))
        found = [key for key in wanted if self._has(*key)]
        failed = [key for key in wanted if key in self._failed]
        if failed and not found:
            self.of(*failed[0])
        if failed:
            target, blocks, _ = failed[0]
            logger.warning(
                "%d matrices are left out, %s at K = %d the first: no eigensolver and no SVD converges on them",
                len(failed), target, blocks,
            )  # fmt: skip
        return found

    def projected(self, target: Target, blocks: int, dimension: int | None = None) -> Tensor | None:
        """W_j Q_j of every block, `[m, r]`, where its blocks are tall; what `linear_blocks` takes."""
        factors = self.of(target, blocks, dimension)
        if factors.side == "left":
            return None
        key = target, blocks, dimension
        return self._projected.get(key, lambda: project_blocks(self._factoring.weight(target), factors))

    def prepare(self, targets: Iterable[Target], blocks: int) -> None:
        """Factor these targets' weights, those of equal shape together, while they fit the budget."""
        wanted, missing = list(targets), []
        for target in wanted:
            key = target, blocks, None
            if key in self._factors:
                continue
            found = self._factoring.from_disk(target, blocks)
            if found is None:
                missing.append(target)
            else:
                self._factors.keep(key, found)
        lacking = set[Target]().union(*everyones(set(missing)))
        missing = [target for target in wanted if target in lacking]
        for group in self._factoring.alike(missing):
            room = everyones((self._batch_size(group[0], blocks), max(0, self.budget.free)))
            size, free = map(min, zip(*room, strict=True))
            group = group[: free // _kept_bytes(group[0], blocks)]  # the others are made when they are asked for
            batches = [group[start : start + size] for start in range(0, len(group), size)]
            for target, factors in self._made_of(batches, blocks):
                key = target, blocks, None
                if factors is None:
                    self._failed.add(key)
                elif key not in self._factors:
                    self._factors.keep(key, moved(factors, target.device(self._factoring.model)))
        self._factoring.stored()

    def retain(self, keys: Iterable[Key]) -> None:
        """Drop everything but what belongs to these keys."""
        wanted = set(keys)
        self._factors.retain(wanted)
        self._projected.retain(wanted)

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept."""
        return self._factors.nbytes + self._projected.nbytes

    def _made(self, target: Target, blocks: int, dimension: int | None) -> BlockFactors | None:
        """Factors from disk or new ones; None where no solver converges."""
        if dimension is not None:
            return self._factoring.clustered(target, blocks, dimension)
        found = self._factoring.from_disk(target, blocks)
        if found is None:
            [(_, found)] = self._together([[target]], blocks)
            self._factoring.stored()
        return found

    def _made_of(
        self, batches: Sequence[Sequence[Target]], blocks: int
    ) -> Iterable[tuple[Target, BlockFactors | None]]:
        """See `_together`, with processes that share the work."""
        if batches and self._is_sharded(batches[0][0]):  # these are dealt one by one
            return self._together(batches, blocks)
        make = functools.partial(self._made_here, blocks, processes() > 1)
        return itertools.chain.from_iterable(shared(batches, make))

    def _made_here(
        self, blocks: int, for_others: bool, batches: Sequence[Sequence[Target]]
    ) -> list[tuple[Target, BlockFactors | None]]:
        """See `_together`; where other processes are to have them, on the CPU and each in memory of its own.

        A part of a batch's memory would be sent as all of it.
        """
        made = self._together(batches, blocks)
        if not for_others:
            return list(made)
        return [(target, moved(found, "cpu", copy=True)) for target, found in made]

    def _together(
        self, batches: Iterable[Sequence[Target]], blocks: int
    ) -> Iterator[tuple[Target, BlockFactors | None]]:
        """New factors of batches of weights of one shape, fewer at once where memory does not hold so many."""
        run = functools.partial(self._factoring.consecutive, blocks=blocks)
        for batch, found in as_memory_allows(batches, run, what="the factors of one matrix"):
            yield from zip(batch, found, strict=True)

    def _has(self, target: Target, blocks: int, dimension: int | None) -> bool:
        try:
            self.of(target, blocks, dimension)
        except NotConvergedError:
            return False
        return True

    def _is_sharded(self, target: Target) -> bool:
        return is_sharded(target.parameter(self._factoring.model))

    def _batch_size(self, target: Target, blocks: int) -> int:
        """How many weights like this one there is room to factor at once; of sharded ones each process has one."""
        if self._is_sharded(target):
            return processes()
        room = self.budget.workspace + self.budget.free // 2  # the other half is for what is kept
        each = self._factoring.workspace_bytes(target, blocks) + self._factoring.weight(target).nbytes
        return max(1, room // each)


def _bytes(factors: BlockFactors) -> int:
    return factors.basis.nbytes + factors.sigma.nbytes


def _kept_bytes(target: Target, blocks: int) -> int:
    """What its factors will take, in FP32."""
    rows, columns = target.shape
    return 4 * blocks * min(Partition.consecutive(rows, blocks).heights[0], columns) ** 2
