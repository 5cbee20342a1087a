"""Calls of the ops, most with something odd in them: one is refused, or gives what FP64 gives for the same values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fuzz.outcome import attempt
from fuzz.texts import DEEP, JUNK
from lasertri import ops
from lasertri.ops import BlockFactors, Partition
from lasertri.ops.functional import DTYPES
from lasertri.ops.subspaces import subspace_partition

NO_DTYPES = (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16)
HALF_HOLDS = 6e4
FREE = ("ranks", "ratios", "rank", "precision", "damping", "score", "bias", "scales", "grad", "blocks")
VALUES = (
    *(value for value in JUNK if value is not DEEP), 2, -7, 10**9, 2**63, 10**400, 0.5, 1.0, -0.0, 1e-320,
    -float("inf"), 1j, np.int64(2), np.float32(0.5), np.array(2), np.array([1, 2]), np.array([[1]]), np.bool_(True),
    torch.tensor(2), torch.tensor([1, 2]), torch.tensor(0.5), torch.tensor(True), torch.tensor([]),
    torch.ones(2).to("meta"), (), [1, 2],
    [0.5, 1], [[1]], [True], ["1"], b"1", {1: 2}, range(3), slice(1, 2), object(), int, torch.float32,
)  # fmt: skip


def case(random: Random, folder: Path) -> str:
    """An op with arguments of its own, often one or two of them odd."""
    name = random.choice(sorted(CALLS))
    op, given = CALLS[name](random)
    before, factors = given.copy(), given.get("factors")
    for _ in range(random.choice((0, 1, 1, 1, 2))):
        argument = random.choice(sorted(given))
        given[argument] = odd(random, given[argument])
    found = attempt(lambda: op(**given))
    if name == "whiten_moments" or factors is not None:
        own = (given.get(argument) is value for argument, value in before.items() if argument not in FREE)
        if not all(own):  # factors of another weight, moments of other tokens: that they fit is not looked at
            return "returned"
    expected = op(**{argument: wide(value) for argument, value in given.items()} | BY_REFERENCE.get(name, {}))
    compared(found, expected, min((x.dtype.itemsize for x in tensors(given)), default=8))
    return "equal"


def matrix(random: Random, *shape: int) -> Tensor:
    """Numbers in some dtype, and some way laid out."""
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(random.randrange(2**31)))
    made = made.to(random.choice(DTYPES))
    if len(shape) > 1 and random.random() < 0.2:
        made = made.mT.contiguous().mT
    return nn.Parameter(made) if random.random() < 0.1 else made


def sizes(random: Random) -> tuple[tuple[int, ...], int]:
    """The shape of a matrix, or of a stack of some, and into how many blocks its rows are split."""
    rows = random.randint(1, 9)
    return (*random.choice(((), (), (2,), (0,), (1, 2))), rows, random.randint(1, 9)), random.randint(1, rows)


def split(random: Random, rows: int, blocks: int) -> int | Partition:
    """So many blocks, some in an order of rows of their own."""
    if random.random() < 0.5:
        return blocks
    return Partition(Partition.consecutive(rows, blocks).offsets, torch.tensor(random.sample(range(rows), rows)))


def asked(random: Random, most: int) -> dict[str, Any]:
    """Ranks or ratios, one or several."""
    if random.random() < 0.5:
        return {"ratios": random.choice((0, 0.3, 1, (0.5, 1.0), [0.0]))}
    return {"ranks": random.choice((0, most, (most, 0), [most]))}


def weight_and_factors(random: Random) -> dict[str, Any]:
    """A weight, with its factors or only how it is split."""
    shape, blocks = sizes(random)
    weight, partition = matrix(random, *shape), split(random, shape[-2], blocks)
    if random.random() < 0.5:
        return {"weight": weight, "blocks": partition}
    return {"weight": weight, "factors": ops.block_svd(weight, blocks=partition)}


def block_svd(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    given = weight_and_factors(random)
    given.pop("factors", None)
    if random.random() < 0.3:
        columns = given["weight"].shape[-1]
        x = torch.randn(20, columns, generator=torch.Generator().manual_seed(1))
        given |= {"inputs": x.mT @ x, "damping": 0.1}
    return lambda **arguments: ops.block_svd(**arguments).sigma, given | {"method": "auto"}


def score_blocks(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    given = weight_and_factors(random)
    scores = random.choice(("taylor", "paper", *VALUES[:9]))

    def op(ranks: Any, ratios: Any, score: Any, **arguments: Any) -> Tensor:
        return ops.score_blocks(**arguments).tail(ranks, ratios=ratios, score=score)

    given |= {"grad": matrix(random, *given["weight"].shape), "score": scores, "ranks": None, "ratios": None}
    return op, given | asked(random, 1)


def reduce_blocks(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    given = weight_and_factors(random)
    return ops.reduce_blocks, given | {"precision": "float64"} | asked(random, 1)


def scale_blocks(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    given = weight_and_factors(random)
    factors = given.get("factors") or ops.block_svd(**given)
    scales = matrix(random, *factors.sigma.shape)
    return ops.scale_blocks, {"weight": given["weight"], "factors": factors, "scales": scales, "precision": "float64"}


def linear_blocks(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    (*_, rows, columns), blocks = sizes(random)
    given: dict[str, Any] = {"weight": matrix(random, rows, columns), "blocks": split(random, rows, blocks)}
    if random.random() < 0.5:
        given["factors"] = factors = ops.block_svd(**given)
        if factors.side == "right":
            given["projected"] = ops.project_blocks(given["weight"], factors)
    given |= {"x": matrix(random, *random.choice(((), (3,), (0,), (2, 2))), columns)}
    return ops.linear_blocks, given | {"bias": matrix(random, rows)} | asked(random, 1)


def project_blocks(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    weight = matrix(random, 9, random.randint(1, 4))
    return ops.project_blocks, {"weight": weight, "factors": ops.block_svd(weight, blocks=split(random, 9, 2))}


def lowrank_blocks(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    shape, blocks = sizes(random)
    given = {"weight": matrix(random, *shape), "blocks": split(random, shape[-2], blocks)}
    return lambda **arguments: ops.lowrank_blocks(**arguments).sigma, given | {"rank": 1, "precision": "float64"}


def whiten_blocks(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    (*lead, rows, columns), blocks = sizes(random)
    given = {"deltas": matrix(random, *lead, 12, rows), "inputs": matrix(random, *lead, 12, columns)}
    given |= {"blocks": split(random, rows, blocks), "rank": 1, "damping": 0.1, "precision": "float64"}
    return lambda **arguments: ops.whiten_blocks(**arguments).sigma, given


def whiten_moments(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    (*lead, rows, columns), blocks = sizes(random)
    deltas, inputs = (matrix(random, *lead, 12, size).detach().double() for size in (rows, columns))
    given = {"grad": deltas.mT @ inputs, "outputs": deltas.mT @ deltas, "inputs": inputs.mT @ inputs}
    given |= {"blocks": split(random, rows, blocks), "rank": 1, "damping": 0.1, "precision": "float64"}
    return lambda **arguments: ops.whiten_moments(**arguments).sigma, given


def compress_tokens(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    def op(**arguments: Any) -> Tensor:
        inputs, deltas = ops.compress_tokens(**arguments)
        return deltas.double().mT @ inputs.double()

    return op, {"inputs": matrix(random, 7, 3), "deltas": matrix(random, 7, 2), "most": random.randint(5, 9)}


def clusters(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    given = {"weight": matrix(random, 8, 5), "blocks": 2, "dimension": 1, "seed": 0, "restarts": 2, "iterations": 3}

    def op(restarts: Any, **arguments: Any) -> Tensor:
        few = restarts > 9 if isinstance(restarts, int) else False  # as many as are asked for are made
        found = subspace_partition(restarts=9 if few else restarts, **arguments)
        return torch.arange(8) if found.order is None else found.order.sort().values

    return op, given


def partition(random: Random) -> tuple[Callable[..., Any], dict[str, Any]]:
    def op(offsets: Any, order: Any) -> Tensor:
        made = Partition(offsets, order)
        weight = torch.eye(made.rows)
        return ops.reduce_blocks(weight, ranks=1, blocks=made)

    rows = random.randint(1, 9)
    return op, {"offsets": (0, rows), "order": torch.tensor(random.sample(range(rows), rows))}


CALLS = {
    "block_svd": block_svd,
    "score_blocks": score_blocks,
    "reduce_blocks": reduce_blocks,
    "scale_blocks": scale_blocks,
    "linear_blocks": linear_blocks,
    "project_blocks": project_blocks,
    "lowrank_blocks": lowrank_blocks,
    "whiten_blocks": whiten_blocks,
    "whiten_moments": whiten_moments,
    "compress_tokens": compress_tokens,
    "subspace_partition": clusters,
    "Partition": partition,
}
BY_REFERENCE = {
    name: {"backend": "reference"}
    for name in CALLS
    if name not in ("project_blocks", "compress_tokens", "subspace_partition", "Partition")
}


def odd(random: Random, value: Any) -> Any:
    """Another value, perhaps of the same kind."""
    if random.random() < 0.3:
        return random.choice(VALUES)
    if isinstance(value, Tensor):
        return odd_tensor(random, value.detach().clone())
    if isinstance(value, BlockFactors):
        field = random.choice(BlockFactors._fields)
        return value._replace(**{field: odd(random, getattr(value, field))})
    if isinstance(value, Partition):
        order = value.order if value.order is not None else torch.arange(value.rows)
        return attempt(lambda: Partition(value.offsets, odd_tensor(random, order)))
    return random.choice(VALUES)


def odd_tensor(random: Random, value: Tensor) -> Any:
    """A tensor of another kind, shape or dtype, or with a value that is none."""
    kinds: dict[str, Callable[[], Any]] = {
        "coo": value.to_sparse,
        "csr": value.to_sparse_csr,
        "mkldnn": lambda: value.float().to_mkldnn(),
        "nested": lambda: torch.nested.nested_tensor([value.float()]),
        "jagged": lambda: torch.nested.nested_tensor([value.float()], layout=torch.jagged),
        "meta": lambda: value.to("meta"),
        "dtype": lambda: value.to(random.choice((*NO_DTYPES, *DTYPES))),
        "quantised": lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        "nan": lambda: value.index_fill(-1, torch.tensor([0]), random.choice((float("nan"), float("inf"), 1e38))),
        "zero": lambda: torch.zeros_like(value),
        "negative": lambda: -value,
        "scalar": lambda: value.flatten()[0],
        "flat": value.flatten,
        "stack": lambda: value.expand(2, *value.shape),
        "expanded": lambda: value[..., :1].expand(value.shape),
        "cut": lambda: value[..., 1:],
        "none": lambda: value[:0],
        "turned": lambda: value.mT if value.dim() > 1 else value.flip(0),
        "numpy": lambda: value.float().numpy(),
        "list": value.tolist,
        "conj": lambda: torch.complex(value.float(), value.float()).imag,
        "inference": lambda: inference(value),
    }
    try:
        return kinds[random.choice(sorted(kinds))]()
    except (RuntimeError, IndexError, NotImplementedError, TypeError, ValueError):  # there is no such tensor
        return random.choice(VALUES)


def inference(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


def wide(value: Any) -> Any:
    """The same numbers in FP64."""
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def tensors(value: Any) -> list[Tensor]:
    """Those of floating dtype among arguments."""
    if isinstance(value, dict | tuple | list):
        return [x for each in (value.values() if isinstance(value, dict) else value) for x in tensors(each)]
    return [value] if isinstance(value, Tensor) and value.is_floating_point() else []


def compared(found: Tensor, expected: Tensor, itemsize: int) -> None:
    """Raise unless these are equal to the rounding of a dtype of so many bytes."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    finite, close = found.isfinite(), 0.1 if itemsize < 4 else 1e-3
    assert (finite | ~(expected.abs() < HALF_HOLDS)).all(), (found, expected)
    finite &= expected.isfinite()  # at rank 0 a NaN is multiplied by nothing
    one, other = found[finite].double(), expected[finite].double()
    assert (one - other).norm() <= close * (1 + other.norm()), (one, other)
