from unittest.mock import Mock

import pytest
import torch
from errors import DTYPES, HALF, PRECISIONS, assert_close
from marks import slow
from spectra import gapped, gaussian

from lasertri.ops.kernels import prefix_product as prefix_product_module
from lasertri.ops.kernels.prefix_product import launch, prefix_product
from lasertri.ops.kernels.tiles import Tiles

SHAPES = [
    (1, 1, 1, 1),
    (3, 1, 7, 1),
    slow((2, 67, 53, 131)),
    slow((1, 131, 67, 67)),
    slow((4, 64, 64, 64)),
    slow((16, 17, 13, 97)),
]


def some_ranks(inner):
    """Unordered and repeated, nothing and everything among them."""
    return [inner, 0, inner // 2, inner // 2, min(1, inner)]


def products(ranks):
    def formula(left, right, bias=None):
        stack = torch.stack([left[..., :k] @ right[..., :k, :] for k in ranks])
        return stack if bias is None else stack + bias.unsqueeze(-2)

    return formula


def inputs(shape, dtype, device):
    batch, rows, inner, columns = shape
    shapes = ((batch, rows, inner), (batch, inner, columns), (batch, columns))
    return [gaussian(*s, seed=i, dtype=dtype).to(device) for i, s in enumerate(shapes)]


def written(left, right, ranks, *rest, dtype=None, **options):
    out = torch.full(
        (len(ranks), *left.shape[:2], right.shape[2]), torch.nan, dtype=dtype or left.dtype, device=left.device
    )
    prefix_product(left, right, ranks, out, *rest, **options)
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compute", [torch.float64, torch.float32])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_every_shape_and_dtype(shape, dtype, compute, biased, device):
    left, right, bias = inputs(shape, compute, device)
    given = (left, right, bias.to(dtype)) if biased else (left, right)
    ranks = some_ranks(shape[2])
    result = written(left, right, ranks, *given[2:], dtype=dtype, compute=compute)
    assert_close(result, products(ranks), *given, sums=compute)


@pytest.mark.parametrize("dtype", HALF)
def test_factors_of_low_precision_too(dtype, device):
    given, ranks = inputs((2, 67, 53, 131), dtype, device), some_ranks(53)
    assert_close(written(*given[:2], ranks, given[2], compute=dtype), products(ranks), *given)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision(precision, device):
    given, ranks = inputs((2, 67, 53, 131), torch.float32, device), some_ranks(53)
    result = written(*given[:2], ranks, given[2], precision=precision)
    assert_close(result, products(ranks), *given, times=PRECISIONS[precision])


def test_a_precision_that_does_not_exist_is_an_error_listing_those_that_do(device):
    given = inputs((1, 4, 4, 4), torch.float32, device)
    with pytest.raises(ValueError, match=r"\['ieee', 'tf32x3', 'tf32'\], got 'fp8'"):
        written(*given[:2], [2], precision="fp8")


@pytest.mark.parametrize(("rows", "inner", "columns"), [(16, 16, 16), (17, 50, 33), slow(97, 19, 5)])
@pytest.mark.parametrize("ranks", [[1], [16], [15, 16, 17], [3, 19, 3], range(20)], ids=str)
def test_every_tile_and_every_step_between_ranks(rows, inner, columns, ranks, device):
    ranks = [min(rank, inner) for rank in ranks]
    left, right, _ = inputs((3, rows, inner, columns), torch.float64, device)
    out = torch.full((len(ranks), 3, rows, columns), torch.nan, dtype=torch.float64, device=device)
    launch(left, right, ranks, out, compute=torch.float64, tiles=Tiles(16, 16, 16, 4, 2)).run()
    assert_close(out, products(ranks), left, right)


@pytest.mark.parametrize("side", ["wide", "tall"])
def test_it_reconstructs_every_truncation(side, device):
    a = gapped(3, 33, 70).to(device) if side == "wide" else gapped(3, 70, 33).to(device)
    u, sigma, vh = torch.linalg.svd(a, full_matrices=False)
    pair = (u, u.mT @ a) if side == "wide" else (a @ vh.mT, vh)
    out = written(*pair, [5, 20, 33], compute=torch.float64)
    for got, k in zip(out, (5, 20, 33), strict=True):
        torch.testing.assert_close(got, (u[..., :k] * sigma[:, None, :k]) @ vh[:, :k], rtol=0, atol=1e-12)


def test_it_writes_where_the_output_says_and_nowhere_else(device):
    left, right, bias = inputs((2, 19, 11, 23), torch.float64, device)
    whole = torch.zeros(3, 21, 4, 30, dtype=torch.float64, device=device)
    out = whole[:, 1:-1, ::2, 3:26].transpose(1, 2)
    prefix_product(left, right, [0, 4, 11], out, bias, compute=torch.float64)
    assert_close(out, products([0, 4, 11]), left, right, bias)
    out.zero_()
    assert not whole.any()


@pytest.mark.parametrize(
    "view", [lambda m: m.flip(-1), lambda m: m.mT.contiguous().mT, lambda m: m[:1].expand(2, -1, -1)]
)
def test_strides_do_not_matter(view, device):
    left, right, bias = inputs((2, 34, 20, 50), torch.float64, device)
    left, right, bias = view(left), view(right), bias[:, :1].expand(-1, 50)
    assert_close(written(left, right, [7, 20], bias, compute=torch.float64), products([7, 20]), left, right, bias)


@pytest.mark.parametrize("shape", [(0, 5, 7, 3), (2, 0, 7, 3), (2, 5, 7, 0)])
def test_nothing_gives_nothing(shape, device):
    left, right, _ = inputs(shape, torch.float32, device)
    assert written(left, right, [2, 7]).shape == (2, shape[0], shape[1], shape[3])


def test_nothing_to_sum_gives_the_bias(device):
    left, right, bias = inputs((2, 5, 0, 3), torch.float32, device)
    assert_close(written(left, right, [0, 0], bias), products([0, 0]), left, right, bias)


def test_the_stream_that_reads_the_ranks_is_recorded(monkeypatch):
    """The cache may drop them while another stream than that of their memory is still to read them."""
    ranks = Mock(is_cuda=True)
    monkeypatch.setattr(prefix_product_module, "_kept", lambda *_: ranks)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the current stream of {device}")
    launch(torch.ones(1, 2, 3), torch.ones(1, 3, 2), [1], torch.empty(1, 1, 2, 2))
    ranks.record_stream.assert_called_once_with("the current stream of cpu")
