"""A linear layer whose weight is kept as two thin factors wherever those are smaller than the rows they stand for."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lasertri.errors import LasertriError
from lasertri.ops.blocks import equal_blocks, heights

Linear = nn.Linear | Conv1D


class Block(NamedTuple):
    """What a block of rows is made of: two factors, k of its rows and what makes the others of them, or its rows.

    Attributes:
        left: L `[b, k]`, or where `rows` are given `[b − k, k]`; None for a block that is kept as it is.
        right: R `[k, n]`; or the k rows themselves; or all of them, `[b, n]`.
        rows: which rows of the block these are, those of `right` first, `[b]`.
    """

    left: Tensor | None
    right: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """How the rows of a weight are kept.

    Attributes:
        offsets: block j is rows `offsets[j]:offsets[j + 1]`, as in `Partition`.
        ranks: rank of every block's factors; None for a block that is kept as it is.
        ordered: whether the blocks' rows stand in an order of their own.
        pivoted: whether a factored block of b rows is k of them, and b − k made of these, `ops.pairs.pivoted`.
    """

    offsets: tuple[int, ...]
    ranks: tuple[int | None, ...]
    ordered: bool = False
    pivoted: bool = False

    @functools.cached_property
    def groups(self) -> list[list[int]]:
        """Blocks of one height and rank, which are stored together and multiplied as one batch."""
        return list(equal_blocks(self.offsets, self.ranks))

    @property
    def permuted(self) -> bool:
        """Whether the rows of the groups, one after the other, are not the rows of the weight."""
        stored = list(itertools.chain.from_iterable(self.groups))
        return self.ordered or self.pivoted or stored != sorted(stored)


class FactoredLinear(nn.Module):
    """In place of `nn.Linear` or `Conv1D`: block j of the weight is L_j R_j where that is smaller, else whole.

    A pivoted one keeps of L_j only what makes the rows that are not rows of R_j.

    All blocks read the same input, so that one product with the stacked R_j (and the whole blocks' rows) comes first,
    and one batched product with the L_j of every group after it.

    Attributes:
        weight: `[Σ k, n]`, R_j and whole blocks' rows, group after group. It is called so for model code that asks a
            layer's weight for its dtype, and because its shape is never that of the layer it replaces: where
            transformers' own `from_pretrained` meets it, it fails and does not fill the layer with random numbers.
        left: for every group of factored blocks their L_j, `[blocks, b, k]`; of pivoted ones `[blocks, b − k, k]`.
        bias: `[m]` or None.
        index: `[m]`, where each output stands among the stored rows; None where they stand in order.
    """

    bias: nn.Parameter | None
    index: Tensor | None

    def __init__(
        self,
        layout: Layout,
        columns: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.in_features, self.out_features = layout, columns, layout.offsets[-1]
        tall = heights(layout.offsets)
        self._groups = [(len(group), tall[group[0]], layout.ranks[group[0]]) for group in layout.groups]
        self._widths = [count * (height if rank is None else rank) for count, height, rank in self._groups]
        empty = functools.partial(torch.empty, dtype=dtype, device=device)
        self.weight = nn.Parameter(empty(sum(self._widths), columns))
        self.left = nn.ParameterList(
            nn.Parameter(empty(count, height - rank if layout.pivoted else height, rank))
            for count, height, rank in self._groups
            if rank is not None
        )
        self.register_parameter("bias", nn.Parameter(empty(self.out_features)) if bias else None)
        index = torch.empty(self.out_features, dtype=torch.int64, device=device) if layout.permuted else None
        self.register_buffer("index", index)

    @classmethod
    def like(cls, linear: Linear, layout: Layout) -> FactoredLinear:
        """With the columns, bias, dtype and device of a layer; its bias is taken, its weight is left to be filled.

        Raises:
            LasertriError: it has other rows than the layout.
        """
        rows, columns = _shape(linear)
        if rows != layout.offsets[-1]:
            raise LasertriError(f"expected a layer of {layout.offsets[-1]} outputs for these factors, got {rows}")
        weight: Tensor = linear.weight
        made = cls(layout, columns, bias=linear.bias is not None, dtype=weight.dtype, device=weight.device)
        made.requires_grad_(weight.requires_grad).train(linear.training)
        made._parameters["bias"] = linear._parameters["bias"]
        return made

    @classmethod
    def build(cls, linear: Linear, blocks: Sequence[Block], order: Tensor | None = None) -> FactoredLinear:
        """In place of a layer: its blocks of rows factored or whole, in the layer's dtype.

        Args:
            order: rows of the weight in the order of the blocks' rows; None for consecutive blocks.
        """
        pivoted = any(block.rows is not None for block in blocks)
        ranks = [None if block.left is None else len(block.right) for block in blocks]
        heights = [len(max(filter(torch.is_tensor, block), key=len)) for block in blocks]
        layout = Layout((0, *itertools.accumulate(heights)), tuple(ranks), order is not None, pivoted)
        made = cls.like(linear, layout)
        groups, offsets = made.layout.groups, made.layout.offsets
        stored = list(itertools.chain.from_iterable(groups))
        factored = [group for group in groups if ranks[group[0]] is not None]
        with torch.no_grad():
            made.weight.copy_(torch.cat([blocks[j].right for j in stored]))
            for left, group in zip(made.left, factored, strict=True):
                left.copy_(torch.stack([side for side in (blocks[j].left for j in group) if side is not None]))
        if made.index is not None:
            places = torch.arange(offsets[-1]) if order is None else order.cpu()
            own = [places[offsets[j] : offsets[j + 1]] for j in range(len(blocks))]
            own = [o if b.rows is None else o[b.rows.cpu()] for o, b in zip(own, blocks, strict=True)]
            made.index.copy_(torch.cat([own[j] for j in stored]).argsort())
        return made

    def forward(self, x: Tensor) -> Tensor:
        """`[…, n]` -> `[…, m]`."""
        inner = F.linear(x, self.weight)
        if len(self.layout.ranks) == 1 and not self.layout.pivoted:
            return F.linear(inner, self.left[0][0], self.bias)
        left, pivoted = iter(self.left), self.layout.pivoted
        outputs = [
            part if rank is None else _expanded(part, next(left), pivoted)
            for part, (_, _, rank) in zip(inner.split(self._widths, dim=-1), self._groups, strict=True)
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if self.index is not None:
            output = output.index_select(-1, self.index)
        return output if self.bias is None else output + self.bias

    def product(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The weight `[m, n]` that the layer stands for, multiplied in this dtype."""
        left, rows = iter(self.left), []
        for part, (count, _, rank) in zip(self.weight.detach().split(self._widths), self._groups, strict=True):
            if rank is not None:
                right = part.to(dtype).view(count, rank, self.in_features)
                made = next(left).detach().to(dtype) @ right
                part = (torch.cat([right, made], dim=1) if self.layout.pivoted else made).flatten(0, 1)
            rows.append(part.to(dtype))
        stored = torch.cat(rows)
        return stored if self.index is None else stored[self.index]

    def extra_repr(self) -> str:
        ranks = ", ".join("whole" if rank is None else str(rank) for rank in self.layout.ranks)
        return f"in_features={self.in_features}, out_features={self.out_features}, ranks=[{ranks}]"


def _expanded(inner: Tensor, left: Tensor, pivoted: bool) -> Tensor:
    """`[…, G·k]` and L `[G, b, k]` -> `[…, G·b]`; of pivoted blocks the inner values are outputs too, in front."""
    count, _, rank = left.shape
    if count == 1:
        made = F.linear(inner, left[0])
        return torch.cat([inner, made], dim=-1) if pivoted else made
    inner = inner.unflatten(-1, (count, rank))
    made = torch.einsum("...gk,gbk->...gb", inner, left)
    return (torch.cat([inner, made], dim=-1) if pivoted else made).flatten(-2)


def _shape(linear: Linear) -> tuple[int, int]:
    """Rows (outputs) and columns (inputs) of a layer's weight."""
    return (linear.nf, linear.nx) if isinstance(linear, Conv1D) else (linear.out_features, linear.in_features)
