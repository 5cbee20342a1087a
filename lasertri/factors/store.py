"""The factors of every (target, partition), made once and kept while they fit the memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from lasertri.errors import LasertriError
from lasertri.factors.budget import Budget
from lasertri.factors.cache import FactorCache
from lasertri.factors.factoring import Factoring
from lasertri.factors.memo import Memo
from lasertri.model.targets import Target
from lasertri.ops import BlockFactors, Partition, project_blocks
from lasertri.ops.backends import named
from lasertri.support.journal import NOTHING, Journal

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

    def of(self, target: Target, blocks: int, dimension: int | None = None) -> BlockFactors:
        """Factors of the target's weight, its rows split into K blocks."""

        def make() -> BlockFactors:
            if dimension is not None:
                return self._factoring.clustered(target, blocks, dimension)
            found = self._factoring.from_disk(target, blocks)
            return self._factoring.consecutive([target], blocks)[0] if found is None else found

        return self._factors.get((target, blocks, dimension), make)

    def projected(self, target: Target, blocks: int, dimension: int | None = None) -> Tensor | None:
        """W_j Q_j of every block, `[m, r]`, where its blocks are tall; what `linear_blocks` takes."""
        factors = self.of(target, blocks, dimension)
        if factors.side == "left":
            return None
        key = target, blocks, dimension
        return self._projected.get(key, lambda: project_blocks(self._factoring.weight(target), factors))

    def prepare(self, targets: Iterable[Target], blocks: int) -> None:
        """Factor these targets' weights, those of equal shape together, while they fit the budget."""
        missing = []
        for target in targets:
            key = target, blocks, None
            if key in self._factors:
                continue
            found = self._factoring.from_disk(target, blocks)
            if found is None:
                missing.append(target)
            else:
                self._factors.keep(key, found)
        for group in self._factoring.alike(missing):
            kept_bytes, size = _kept_bytes(group[0], blocks), self._batch_size(group[0], blocks)
            group = group[: max(0, self.budget.free) // kept_bytes]  # the others are made when they are asked for
            for start in range(0, len(group), size):
                batch = group[start : start + size]
                for target, factors in zip(batch, self._factoring.consecutive(batch, blocks), strict=True):
                    self._factors.keep((target, blocks, None), factors)

    def retain(self, keys: Iterable[Key]) -> None:
        """Drop everything but what belongs to these keys."""
        wanted = set(keys)
        self._factors.retain(wanted)
        self._projected.retain(wanted)

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept."""
        return self._factors.nbytes + self._projected.nbytes

    def _batch_size(self, target: Target, blocks: int) -> int:
        """How many weights like this one there is room to factor at once."""
        room = self.budget.workspace + self.budget.free // 2  # the other half is for what is kept
        each = self._factoring.workspace_bytes(target, blocks) + self._factoring.weight(target).nbytes
        return max(1, room // each)


def _bytes(factors: BlockFactors) -> int:
    return factors.basis.nbytes + factors.sigma.nbytes


def _kept_bytes(target: Target, blocks: int) -> int:
    """What its factors will take, in FP32."""
    rows, columns = target.shape
    return 4 * blocks * min(Partition.consecutive(rows, blocks).heights[0], columns) ** 2
