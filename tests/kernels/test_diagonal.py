import pytest
import torch
from errors import DTYPES, HALF, PRECISIONS, assert_close
from marks import slow
from spectra import gapped, gaussian

from lasertri.ops.kernels.diagonal import diagonal, launch
from lasertri.ops.kernels.tiles import Tiles

SHAPES = [
    (1, 1, 1, 1),
    (3, 1, 7, 1),
    slow((2, 67, 131, 53)),
    slow((1, 131, 67, 67)),
    slow((4, 64, 64, 64)),
    slow((16, 17, 97, 13)),
]


def by_product(left, matrix, right):
    return (left.mT @ matrix @ right).diagonal(dim1=-2, dim2=-1)


def inputs(shape, dtype, device, factors=None):
    batch, rows, columns, ranks = shape
    kinds = (factors or dtype, dtype, factors or dtype)
    shapes = ((batch, rows, ranks), (batch, rows, columns), (batch, columns, ranks))
    return [gaussian(*s, seed=i, dtype=k).to(device) for i, (s, k) in enumerate(zip(shapes, kinds, strict=True))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compute", [torch.float64, torch.float32])
def test_every_shape_and_dtype(shape, dtype, compute, device):
    left, matrix, right = inputs(shape, dtype, device, factors=compute)
    result = diagonal(left, matrix, right, compute=compute)
    assert result.dtype == compute
    assert_close(result, by_product, left, matrix, right)


@pytest.mark.parametrize("dtype", HALF)
def test_factors_of_low_precision_too(dtype, device):
    left, matrix, right = inputs((2, 67, 131, 53), dtype, device)
    assert_close(diagonal(left, matrix, right, compute=dtype), by_product, left, matrix, right)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision(precision, device):
    tensors = inputs((2, 67, 131, 53), torch.float32, device)
    result = diagonal(*tensors, compute=torch.float32, precision=precision)
    assert_close(result, by_product, *tensors, times=PRECISIONS[precision])


def test_the_one_sided_form_gives_the_gradients_of_the_singular_values(device):
    a, g = gapped(2, 33, 70).to(device), gaussian(2, 33, 70).to(device)
    u, sigma, vh = torch.linalg.svd(a, full_matrices=False)
    one_sided = diagonal(u, g @ a.mT, u) / sigma
    torch.testing.assert_close(one_sided, diagonal(u, g, vh.mT), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("rows", "ranks"), [(16, 16), (17, 33), slow(97, 5), slow(240, 48)])
def test_every_tile_is_added_once(rows, ranks, device):
    tensors = inputs((3, rows, 40, ranks), torch.float64, device)
    started = launch(*tensors, tiles=Tiles(16, 16, 16, 4, 2))
    started.result.fill_(torch.nan)
    started.run()
    assert_close(started.result.sum(0), by_product, *tensors)


@pytest.mark.parametrize(
    "view", [lambda m: m.flip(-1), lambda m: m.mT.contiguous().mT, lambda m: m[:1].expand(2, -1, -1)]
)
def test_strides_do_not_matter(view, device):
    tensors = [view(t) for t in inputs((2, 34, 50, 20), torch.float64, device)]
    assert_close(diagonal(*tensors), by_product, *tensors)


@pytest.mark.parametrize("shape", [(0, 5, 7, 3), (2, 5, 7, 0), (2, 0, 7, 3), (2, 5, 0, 3)])
def test_nothing_gives_nothing_or_zeros(shape, device):
    result = diagonal(*inputs(shape, torch.float64, device))
    assert result.shape == (shape[0], shape[3])
    assert not result.any()
