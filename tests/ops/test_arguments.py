"""What no op can be given is refused in a sentence by each of them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lasertri import LasertriError, Partition, ops, use_backend
from lasertri.ops.subspaces import subspace_partition

WEIGHT = torch.arange(12.0).reshape(4, 3)
TALL = ops.block_svd(WEIGHT)
SQUARES = torch.eye(4)
TENSORS: dict[str, Callable] = {  # by op and argument, a call with a tensor there
    "block_svd weight": lambda t: ops.block_svd(t),
    "block_svd inputs": lambda t: ops.block_svd(WEIGHT, inputs=t),
    "score_blocks weight": lambda t: ops.score_blocks(t, WEIGHT),
    "score_blocks grad": lambda t: ops.score_blocks(WEIGHT, t),
    "reduce_blocks weight": lambda t: ops.reduce_blocks(t, ranks=1),
    "reduce_blocks factors": lambda t: ops.reduce_blocks(WEIGHT, ranks=1, factors=TALL._replace(basis=t)),
    "scale_blocks weight": lambda t: ops.scale_blocks(t, TALL.sigma, factors=TALL),
    "scale_blocks scales": lambda t: ops.scale_blocks(WEIGHT, t, factors=TALL),
    "scale_blocks factors": lambda t: ops.scale_blocks(WEIGHT, TALL.sigma, factors=TALL._replace(sigma=t)),
    "linear_blocks x": lambda t: ops.linear_blocks(t, WEIGHT, ranks=1),
    "linear_blocks weight": lambda t: ops.linear_blocks(torch.ones(3), t, ranks=1),
    "linear_blocks bias": lambda t: ops.linear_blocks(torch.ones(3), WEIGHT, t, ranks=1),
    "linear_blocks projected": lambda t: ops.linear_blocks(torch.ones(3), WEIGHT, ranks=1, projected=t),
    "project_blocks weight": lambda t: ops.project_blocks(t, TALL),
    "lowrank_blocks weight": lambda t: ops.lowrank_blocks(t, rank=1),
    "whiten_blocks deltas": lambda t: ops.whiten_blocks(t, WEIGHT, rank=1),
    "whiten_blocks inputs": lambda t: ops.whiten_blocks(WEIGHT, t, rank=1),
    "whiten_moments grad": lambda t: ops.whiten_moments(t, SQUARES, SQUARES[:3, :3], rank=1),
    "whiten_moments outputs": lambda t: ops.whiten_moments(WEIGHT, t, SQUARES[:3, :3], rank=1),
    "whiten_moments inputs": lambda t: ops.whiten_moments(WEIGHT, SQUARES, t, rank=1),
    "compress_tokens inputs": lambda t: ops.compress_tokens(t, WEIGHT, 2),
    "compress_tokens deltas": lambda t: ops.compress_tokens(WEIGHT, t, 2),
    "subspace_partition weight": lambda t: subspace_partition(t, blocks=2, dimension=1),
}
KINDS = {
    "sparse coo": WEIGHT.to_sparse,
    "sparse csr": WEIGHT.to_sparse_csr,
    "mkldnn": WEIGHT.to_mkldnn,
    "nested": lambda: torch.nested.nested_tensor([WEIGHT]),
    "meta": lambda: WEIGHT.to("meta"),
    "ndarray": WEIGHT.numpy,
    "torch.int64": WEIGHT.long,
    "float": lambda: 1.0,
}


@pytest.mark.filterwarnings("ignore:.*(CSR|nested)")  # which torch calls prototypes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", TENSORS)
def test_what_is_no_dense_tensor_of_numbers_is_named(place, kind):
    with pytest.raises(
        LasertriError, match=f"expected .*{place.split()[1].rstrip('s')}.* in torch.float.*got .*{kind}"
    ):
        TENSORS[place](KINDS[kind]())


NUMBERS: dict[str, Callable] = {
    "block_svd blocks": lambda n: ops.block_svd(WEIGHT, blocks=n),
    "reduce_blocks ranks": lambda n: ops.reduce_blocks(WEIGHT, ranks=n),
    "linear_blocks ranks": lambda n: ops.linear_blocks(torch.ones(3), WEIGHT, ranks=n),
    "lowrank_blocks rank": lambda n: ops.lowrank_blocks(WEIGHT, rank=n),
    "whiten_blocks rank": lambda n: ops.whiten_blocks(WEIGHT, WEIGHT, rank=n),
    "compress_tokens most": lambda n: ops.compress_tokens(WEIGHT, WEIGHT, n),
    "subspace_partition blocks": lambda n: subspace_partition(WEIGHT, blocks=n, dimension=1),
    "subspace_partition dimension": lambda n: subspace_partition(WEIGHT, blocks=2, dimension=n),
    "subspace_partition seed": lambda n: subspace_partition(WEIGHT, blocks=2, dimension=1, seed=n),
    "tail ranks": lambda n: ops.score_blocks(WEIGHT, WEIGHT).tail(n),
}


@pytest.mark.parametrize(
    "number",
    [True, np.bool_(True), torch.tensor(1), np.array(1), 1.0, "1", b"\x01", {1: 2}, -1, 2**64, -(10**5000), [[1]]],
    ids=lambda number: f"{type(number).__name__}",
)
@pytest.mark.parametrize("place", NUMBERS)
def test_what_is_no_whole_number_in_range_is_refused(place, number):
    with pytest.raises(LasertriError, match=r"^expected .{1,80}, got .{1,200}$"):
        NUMBERS[place](number)


@pytest.mark.parametrize(
    "ratio", [True, np.array(0.5), torch.tensor(0.5), -0.1, float("nan"), 10**400, "0.5", 1j, {0: 1}]
)
def test_what_is_no_ratio_is_refused(ratio):
    with pytest.raises(LasertriError, match="expected retained ratios from 0 to 1, got "):
        ops.reduce_blocks(WEIGHT, ratios=ratio)
    with pytest.raises(LasertriError, match="expected retained ratios from 0 to 1, got "):
        ops.reduce_blocks(WEIGHT, ratios=[0.5, ratio])


def test_ranks_may_be_numbers_of_numpy():
    expected = ops.reduce_blocks(WEIGHT, ranks=[1, 2])
    assert torch.equal(ops.reduce_blocks(WEIGHT, ranks=np.array([1, 2])), expected)
    assert torch.equal(ops.reduce_blocks(WEIGHT, ranks=np.int64(2)), expected[1])
    assert torch.equal(ops.reduce_blocks(WEIGHT, ratios=np.float32(0.5)), expected[0])


@pytest.mark.parametrize("damping", [True, 0, -1, float("inf"), float("nan"), 10**400, "0.1", None])
def test_what_is_no_damping_is_refused(damping):
    for call in (
        lambda: ops.block_svd(WEIGHT, inputs=SQUARES[:3, :3], damping=damping),
        lambda: ops.whiten_blocks(WEIGHT, WEIGHT, rank=1, damping=damping),
    ):
        with pytest.raises(LasertriError, match="expected a damping above 0, got"):
            call()


@pytest.mark.parametrize("name", [None, 1, ["gram"], np.array(["gram"]), "GRAM", "x" * 9999])
def test_what_is_no_name_is_refused(name):
    for call in (
        lambda: ops.block_svd(WEIGHT, backend=name),
        lambda: ops.block_svd(WEIGHT, method=name),
        lambda: ops.reduce_blocks(WEIGHT, ranks=1, precision=name),
        lambda: ops.score_blocks(WEIGHT, WEIGHT).tail(1, score=name),
        lambda: use_backend(name).__enter__(),
    ):
        with pytest.raises(LasertriError, match=r"^expected a \w+ among \[.*\], got .{1,200}$"):
            call()


@pytest.mark.parametrize(
    "changes",
    [
        {"partition": 1},
        {"partition": None},
        {"columns": None},
        {"columns": 2},
        {"whitened": None},
        {"basis": TALL.basis[..., :2]},
        {"basis": TALL.basis[0]},
        {"basis": TALL.basis.bfloat16()},
        {"sigma": TALL.sigma[0]},
    ],
    ids=str,
)
def test_factors_that_block_svd_cannot_have_returned_are_refused(changes):
    for call in (ops.reduce_blocks, ops.linear_blocks):
        arguments = (WEIGHT,) if call is ops.reduce_blocks else (torch.ones(3), WEIGHT)
        with pytest.raises(LasertriError, match="expected (the BlockFactors|factors of this|the factors' basis)"):
            call(*arguments, ranks=1, factors=TALL._replace(**changes))


def test_only_tall_blocks_are_projected():
    with pytest.raises(LasertriError, match=r"factors on the right side, got \[3, 4\] with those on the left"):
        ops.project_blocks(WEIGHT.mT, ops.block_svd(WEIGHT.mT))
    with pytest.raises(LasertriError, match="BlockFactors that block_svd returned, got NoneType"):
        ops.project_blocks(WEIGHT, None)


@pytest.mark.parametrize(
    "order",
    [
        torch.tensor([1.0, 0.0]),
        torch.tensor([1, 0], dtype=torch.uint8),
        torch.tensor([True, False]),
        torch.tensor([1, 0], device="meta"),
        torch.tensor([1, 0]).to_sparse(),
        [1, 0],
        np.array([1, 0]),
        True,
    ],
    ids=str,
)
def test_an_order_that_is_no_tensor_of_int64_is_refused(order):
    with pytest.raises(LasertriError, match="expected `order` in torch.int64.*got"):
        Partition((0, 1, 2), order)


@pytest.mark.parametrize("order", [torch.tensor(0), torch.tensor([[0, 1]]), torch.tensor([0, 2**62])], ids=str)
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(LasertriError, match="expected `order` to be a permutation of 2 rows, got tensor"):
        Partition((0, 1, 2), order)


@pytest.mark.parametrize("offsets", [None, 3, "012", (0, 1.0), (False, True), (0, "1"), (0, 10**5000), ((0,), (1,))])
def test_offsets_that_are_no_whole_numbers_are_refused(offsets):
    with pytest.raises(LasertriError, match="expected offsets that start at 0 and increase, got|permutation of"):
        Partition(offsets, torch.arange(3))


def test_values_that_no_factorisation_converges_for_are_refused():
    with pytest.raises(LasertriError, match=r"values that can be factored, but linalg\.eigh: .*; scale them, or use"):
        ops.whiten_blocks(WEIGHT.double() * 1e200, WEIGHT, rank=1, backend="reference")


@pytest.mark.parametrize("backend", ["reference", "gram"])
@pytest.mark.parametrize(
    "call",
    [
        lambda o: ops.block_svd(WEIGHT.double() * 1e307, **o),
        lambda o: ops.score_blocks(WEIGHT.double() * 1e307, WEIGHT, **o),
        lambda o: ops.score_blocks(WEIGHT, WEIGHT.double() * 1.5e307, **o),
        lambda o: ops.score_blocks(WEIGHT, WEIGHT.double() * 1.5e307, factors=TALL, **o),
        lambda o: ops.reduce_blocks(WEIGHT.double() * 1.5e307, ranks=1, **o),
        lambda o: ops.reduce_blocks(WEIGHT.double() * 1.5e307, ranks=1, factors=TALL, **o),
        lambda o: ops.reduce_blocks(WEIGHT.double() * 1e40, ranks=1, factors=TALL, precision="float32", **o),
        lambda o: ops.scale_blocks(WEIGHT.double() * 1e300, TALL.sigma * 1e20, factors=TALL, **o),
        lambda o: ops.lowrank_blocks(WEIGHT.double() * 1e307, rank=1, **o),
    ],
)
def test_values_whose_results_would_overflow_are_refused(call, backend):
    with pytest.raises(
        LasertriError, match=r"expected values whose (results|squares) torch\.float(64|32) can hold, got l"
    ):
        call({"backend": backend})
