"""The factors of every (target, K), computed once and kept while they fit the memory budget."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from torch import nn

from lasertri.errors import LasertriError
from lasertri.ops import BlockFactors, Partition, block_svd
from lasertri.ops.backends import choose_backend
from lasertri.targets import Target

logger = logging.getLogger(__name__)


class FactorStore:
    """Factors by target and number of blocks; those over the budget are computed again when asked for.

    Args:
        budget: bytes for the FP64 workspace of one matrix and for kept factors together.
        targets, block_counts: what will be asked for.

    Raises:
        LasertriError: the budget is below the workspace that one of them needs, a matrix has fewer rows than
            blocks, or the backend cannot run.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Iterable[Target],
        block_counts: Sequence[int],
        *,
        budget: int,
        backend: str = "auto",
    ) -> None:
        self.model, self.backend, self.workspace, wanted = model, backend, 0, 0
        for target in targets:
            device = target.parameter(model).device
            workspace_bytes = choose_backend(backend, device).module.workspace_bytes
            for blocks in block_counts:
                columns, height = target.shape[1], Partition.consecutive(target.shape[0], blocks).heights[0]
                wanted += 8 * blocks * min(height, columns) ** 2
                needed = workspace_bytes(blocks, height, columns, device)
                if needed > budget:
                    raise LasertriError(
                        f"expected a memory budget of at least {needed / 2**30:.3g} GiB for {target} at K = {blocks}, "
                        f"came {budget / 2**30:.3g} GiB"
                    )
                self.workspace = max(self.workspace, needed)
        self.free = budget - self.workspace
        if wanted > self.free:
            logger.warning(
                "The factors of all targets take %.1f GiB and the memory budget keeps %.1f of them; the others are "
                "computed again for every micro-batch. A larger --memory-budget saves that time.",
                wanted / 2**30,
                self.free / 2**30,
            )
        self._kept: dict[tuple[Target, int], BlockFactors] = {}

    def of(self, target: Target, blocks: int) -> BlockFactors:
        """Factors of the target's weight, split into K consecutive blocks."""
        key = target, blocks
        if key in self._kept:
            return self._kept[key]
        factors = block_svd(target.view(target.parameter(self.model)), blocks=blocks, backend=self.backend)
        size = factors.basis.nbytes + factors.sigma.nbytes
        if size <= self.free:
            self._kept[key] = factors
            self.free -= size
        return factors

    @property
    def kept_bytes(self) -> int:
        return sum(f.basis.nbytes + f.sigma.nbytes for f in self._kept.values())
