import pytest
import torch
from errors import DTYPES, HALF, PRECISIONS, assert_close
from marks import slow
from spectra import gapped, gaussian

from lasertri.ops.kernels.scaled_product import launch, scaled_product
from lasertri.ops.kernels.tiles import Tiles

SHAPES = [
    (1, 1, 1, 1),
    (3, 1, 7, 1),
    slow((2, 67, 53, 131)),
    slow((1, 131, 67, 67)),
    slow((4, 64, 64, 64)),
    slow((16, 17, 13, 97)),
]


def formula(left, scale, right, base):
    return base + (left * scale.unsqueeze(-2)) @ right


def inputs(shape, dtype, device, factors=None):
    batch, rows, ranks, columns = shape
    kinds = (factors or dtype, factors or dtype, factors or dtype, dtype)
    shapes = ((batch, rows, ranks), (batch, ranks), (batch, ranks, columns), (batch, rows, columns))
    return [gaussian(*s, seed=i, dtype=k).to(device) for i, (s, k) in enumerate(zip(shapes, kinds, strict=True))]


def written(left, scale, right, base, **options):
    out = torch.full_like(base, torch.nan)
    scaled_product(left, scale, right, base, out, **options)
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compute", [torch.float64, torch.float32])
def test_every_shape_and_dtype(shape, dtype, compute, device):
    given = inputs(shape, dtype, device, factors=compute)
    assert_close(written(*given, compute=compute), formula, *given, sums=compute)


@pytest.mark.parametrize("dtype", HALF)
def test_factors_of_low_precision_too(dtype, device):
    given = inputs((2, 67, 53, 131), dtype, device)
    rounded = (given[0] * given[1].unsqueeze(-2)).to(dtype)  # what is multiplied
    exact = given[3].double() + rounded.double() @ given[2].double()
    got = written(*given, compute=dtype)
    assert float((got.double() - exact).abs().max()) <= 2 * torch.finfo(dtype).eps * float(exact.abs().max())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision(precision, device):
    given = inputs((2, 67, 53, 131), torch.float32, device)
    assert_close(written(*given, precision=precision), formula, *given, times=PRECISIONS[precision])


@pytest.mark.parametrize(("rows", "ranks", "columns"), [(16, 16, 16), (17, 50, 33), (97, 19, 5)])
def test_every_tile_is_written(rows, ranks, columns, device):
    given = inputs((3, rows, ranks, columns), torch.float64, device)
    out = torch.full_like(given[3], torch.nan)
    launch(*given, out, compute=torch.float64, tiles=Tiles(16, 16, 16, 4, 2)).run()
    assert_close(out, formula, *given)


@pytest.mark.parametrize("side", ["wide", "tall"])
def test_it_multiplies_singular_values(side, device):
    a = gapped(3, 33, 70).to(device) if side == "wide" else gapped(3, 70, 33).to(device)
    u, sigma, vh = torch.linalg.svd(a, full_matrices=False)
    s = 1 + 0.1 * gaussian(3, 33).to(device)
    pair = (u, u.mT @ a) if side == "wide" else (a @ vh.mT, vh)
    out = written(pair[0], s - 1, pair[1], a, compute=torch.float64)
    torch.testing.assert_close(out, (u * (sigma * s).unsqueeze(-2)) @ vh, rtol=0, atol=1e-12)


def test_it_may_write_over_the_base_and_nowhere_else(device):
    left, scale, right, base = inputs((2, 19, 11, 23), torch.float64, device)
    whole = torch.zeros(21, 4, 30, dtype=torch.float64, device=device)
    out = whole[1:-1, ::2, 3:26].transpose(0, 1)
    out.copy_(base)
    scaled_product(left, scale, right, out, out, compute=torch.float64)
    assert_close(out, formula, left, scale, right, base)
    out.zero_()
    assert not whole.any()


@pytest.mark.parametrize(
    "view", [lambda m: m.flip(-1), lambda m: m.mT.contiguous().mT, lambda m: m[:1].expand(2, -1, -1)]
)
def test_strides_do_not_matter(view, device):
    left, scale, right, base = inputs((2, 34, 20, 50), torch.float64, device)
    given = view(left), scale[:, :1].expand(-1, 20), view(right), view(base)
    assert_close(written(*given, compute=torch.float64), formula, *given)


@pytest.mark.parametrize("shape", [(0, 5, 7, 3), (2, 0, 7, 3), (2, 5, 7, 0)])
def test_nothing_gives_nothing(shape, device):
    given = inputs(shape, torch.float32, device)
    assert written(*given).shape == given[3].shape


def test_nothing_to_sum_gives_the_base(device):
    given = inputs((2, 5, 0, 3), torch.float32, device)
    assert torch.equal(written(*given), given[3])
