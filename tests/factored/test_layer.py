"""A factored layer gives what the FP64 truncation gives, however its rows are split, ordered and stored."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lasertri import LasertriError, Partition, block_svd
from lasertri.factored.exchange import exchanged, factored, linear_at, pays
from lasertri.factored.layer import FactoredLinear, Layout
from lasertri.ops.pairs import truncated_factors


def make_linear(rows, columns, *, dtype=torch.float32, bias=True, conv=False, scale=1.0):
    generator = torch.Generator().manual_seed(rows * columns)
    weight = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    linear = Conv1D(rows, columns) if conv else nn.Linear(columns, rows, bias=bias)
    linear = linear.to(dtype)
    with torch.no_grad():
        linear.weight.copy_(weight.mT if conv else weight)
        if linear.bias is not None:
            linear.bias.copy_(torch.randn(rows, generator=generator))
    return linear


def weight_of(linear):
    return linear.weight.detach().mT if isinstance(linear, Conv1D) else linear.weight.detach()


def make_factored(linear, partition, ranks, pivot=False):
    weight = weight_of(linear)
    pairs = truncated_factors(weight, block_svd(weight, blocks=partition), ranks)
    return factored(linear, pairs, weight, partition.order, pivot=pivot)


def expected_weight(weight, partition, ranks, pivot=False):
    """FP64 truncation by plain SVD of the blocks whose factors are smaller; the others as they are."""
    result, order = weight.double().clone(), partition.order
    for (start, stop), rank in zip(itertools.pairwise(partition.offsets), ranks, strict=True):
        rows = torch.arange(start, stop) if order is None else order[start:stop]
        if rank * (stop - start + weight.shape[1] - rank * pivot) < (stop - start) * weight.shape[1]:
            u, s, vh = torch.linalg.svd(weight.double()[rows], full_matrices=False)
            result[rows] = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return result


def shuffled(rows, offsets):
    return Partition(offsets, torch.randperm(rows, generator=torch.Generator().manual_seed(1)))


CASES = {
    "one block": (17, 23, Partition.consecutive(17, 1), [5]),
    "three, uneven": (31, 23, Partition.consecutive(31, 3), [4, 4, 4]),
    "eight, uneven": (67, 29, Partition.consecutive(67, 8), [2] * 8),
    "rank 0 among them": (31, 23, Partition.consecutive(31, 3), [0, 4, 0]),
    "all of rank 0": (16, 23, Partition.consecutive(16, 4), [0] * 4),
    "one block of rank 0": (16, 23, Partition.consecutive(16, 1), [0]),
    "whole blocks between": (40, 23, Partition.consecutive(40, 4), [3, 9, 1, 3]),
    "uneven ranks": (40, 23, Partition.consecutive(40, 4), [1, 2, 3, 1]),
    "tall": (61, 7, Partition.consecutive(61, 2), [3, 2]),
    "rows in another order": (31, 23, shuffled(31, (0, 5, 19, 31)), [2, 4, 3]),
    "another order, whole and rank 0": (31, 23, shuffled(31, (0, 12, 19, 31)), [4, 7, 0]),
}


@pytest.mark.parametrize("pivot", [False, True], ids=["two factors", "pivoted"])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_output_is_that_of_the_fp64_truncation(case, conv, pivot):
    rows, columns, partition, ranks = CASES[case]
    linear = make_linear(rows, columns, conv=conv)
    layer = make_factored(linear, partition, ranks, pivot)
    expected = expected_weight(weight_of(linear), partition, ranks, pivot)
    x = torch.randn(2, 3, columns, generator=torch.Generator().manual_seed(2))
    output = F.linear(x.double(), expected, linear.bias.double())
    assert layer(x).dtype == torch.float32
    assert layer(x).shape == (2, 3, rows)
    torch.testing.assert_close(layer(x).double(), output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.product(), expected, rtol=1e-6, atol=1e-6)
    stored = layer.weight.numel() + sum(left.numel() for left in layer.left)
    sizes = (k * (b + columns - k * pivot) for k, b in zip(ranks, partition.heights, strict=True))
    assert stored == sum(min(size, b * columns) for size, b in zip(sizes, partition.heights, strict=True))
    assert stored < linear.weight.numel()
    assert layer.weight.shape != linear.weight.shape  # what makes transformers refuse it


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_rounding_of_the_factors_is_like_that_of_the_dense_truncation(dtype, scale, blocks):
    linear, partition = make_linear(131, 61, dtype=dtype, scale=scale), Partition.consecutive(131, blocks)
    ranks = [4] * blocks
    layer = make_factored(linear, partition, ranks)
    exact = expected_weight(linear.weight.detach(), partition, ranks)
    rounding = (exact.to(dtype).double() - exact).norm()
    assert layer.weight.dtype == layer.left[0].dtype == dtype
    assert (
        layer.product() - exact
    ).norm() <= 2 * rounding  # two factors are rounded: √2 of one rounding, and little more


@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_the_bf16_output_is_as_exact_as_the_dense_layers(blocks):
    linear, partition = make_linear(131, 61, dtype=torch.bfloat16), Partition.consecutive(131, blocks)
    layer = make_factored(linear, partition, [4] * blocks)
    exact = expected_weight(linear.weight.detach(), partition, [4] * blocks)
    x = torch.randn(64, 61, generator=torch.Generator().manual_seed(2)).bfloat16()
    output = F.linear(x.double(), exact, linear.bias.double())
    dense = F.linear(x, exact.bfloat16(), linear.bias)
    assert layer(x).dtype == torch.bfloat16
    assert (layer(x) - output).norm() <= 2 * (dense - output).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("blocks", [1, 3])
def test_pivoted_factors_are_rounded_a_few_times_as_much(dtype, blocks):
    linear, partition = make_linear(131, 61, dtype=dtype), Partition.consecutive(131, blocks)
    layer = make_factored(linear, partition, [20] * blocks, pivot=True)
    exact = expected_weight(linear.weight.detach(), partition, [20] * blocks, pivot=True)
    assert (layer.product() - exact).norm() <= 6 * (exact.to(dtype).double() - exact).norm()


def test_factors_are_balanced():
    layer = make_factored(make_linear(31, 23), Partition.consecutive(31, 1), [4])
    sigma = torch.linalg.svdvals(make_linear(31, 23).weight.detach().double())[:4]
    for norms in (layer.weight.norm(dim=1), layer.left[0][0].norm(dim=0)):
        torch.testing.assert_close(norms.double(), sigma.sqrt(), rtol=1e-5, atol=0)


def test_where_no_block_pays_there_is_no_layer():
    linear = make_linear(31, 23)
    assert make_factored(linear, Partition.consecutive(31, 3), [8, 8, 8]) is None
    assert not pays(6, 12, 12)  # as many numbers, twice the products
    assert pays(5, 12, 12)
    assert pays(11, 12, 12, pivot=True)
    assert not pays(12, 12, 12, pivot=True)


def test_equal_blocks_share_one_product():
    layer = make_factored(make_linear(64, 29), Partition.consecutive(64, 8), [2] * 8)
    assert [left.shape for left in layer.left] == [(8, 8, 2)]
    assert layer.index is None


@pytest.mark.parametrize("pivot", [False, True], ids=["two factors", "pivoted"])
def test_it_is_a_module_like_the_one_it_replaces(pivot):
    linear = make_linear(31, 23, bias=False).eval().requires_grad_(False)
    layer = make_factored(linear, shuffled(31, (0, 5, 19, 31)), [2, 4, 3], pivot)
    assert layer.bias is None
    assert not layer.training
    assert not any(p.requires_grad for p in layer.parameters())
    x = torch.randn(5, 23)
    torch.testing.assert_close(layer(x), F.linear(x, layer.product(torch.float32)))
    again = FactoredLinear(layer.layout, 23, bias=False)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    half = layer.bfloat16()
    assert half.index.dtype == torch.int64
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("pivot", [False, True], ids=["two factors", "pivoted"])
def test_gradients_flow_through_it(pivot):
    layer = make_factored(make_linear(31, 23), Partition.consecutive(31, 3), [2, 2, 2], pivot)
    x = torch.randn(5, 23, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.product(torch.float32).sum(0).expand(5, -1))
    assert all(p.grad is not None for p in layer.parameters())


def test_a_layout_of_other_rows_is_refused():
    with pytest.raises(LasertriError, match="expected a layer of 30 outputs"):
        FactoredLinear.like(make_linear(31, 23), Layout((0, 30), (2,)))


def test_shared_layers_and_weights_are_refused(model):
    mlp = model.transformer.h[1].mlp
    with pytest.raises(LasertriError, match="got none"):
        linear_at(model, "transformer.h.9.mlp.fc_in")
    with pytest.raises(LasertriError, match="got a LayerNorm"):
        linear_at(model, "transformer.h.1.ln_1")
    mlp.fc_in.weight = model.transformer.h[0].mlp.fc_in.weight
    with pytest.raises(LasertriError, match="weight of its own"):
        linear_at(model, "transformer.h.1.mlp.fc_in")
    mlp.fc_out = model.transformer.h[0].mlp.fc_out
    with pytest.raises(LasertriError, match="weight of its own"):
        linear_at(model, "transformer.h.0.mlp.fc_out")


def test_within_the_exchange_the_layer_stands_in_its_place(model):
    before, path = model.transformer.h[1].mlp.fc_in, "transformer.h.1.mlp.fc_in"
    layer = make_factored(before, Partition.consecutive(40, 3), [2, 2, 2])
    with pytest.raises(KeyboardInterrupt), exchanged(model, {path: layer}):
        assert model.transformer.h[1].mlp.fc_in is layer
        raise KeyboardInterrupt
    assert model.transformer.h[1].mlp.fc_in is before
