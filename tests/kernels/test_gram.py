import pytest
import torch
from errors import DTYPES, HALF, HALF_PRODUCTS, PRECISIONS, assert_close
from marks import slow
from spectra import gaussian

from lasertri.ops.kernels.gram import gram, launch
from lasertri.ops.kernels.tiles import Tiles

SHAPES = [
    (1, 1, 1),
    (3, 1, 7),
    (3, 7, 1),
    slow((2, 67, 131)),
    slow((1, 131, 67)),
    slow((4, 64, 64)),
    slow((16, 17, 97)),
]


def product(matrix):
    return matrix @ matrix.mT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compute", [torch.float64, torch.float32])
def test_every_shape_and_dtype(shape, dtype, compute, device):
    matrix = gaussian(*shape, dtype=dtype).to(device)
    if compute == torch.float32 and dtype in HALF:
        compute = dtype
    result = gram(matrix, compute=compute)
    assert result.dtype == (torch.float64 if compute == torch.float64 else torch.float32)
    assert_close(result, product, matrix, times=HALF_PRODUCTS if compute in HALF else 4.0)
    assert torch.equal(result, result.mT)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision(precision, device):
    matrix = gaussian(2, 67, 131, dtype=torch.float32).to(device)
    assert_close(gram(matrix, compute=torch.float32, precision=precision), product, matrix, times=PRECISIONS[precision])


@pytest.mark.parametrize("rows", [16, 17, slow(80), slow(97), slow(240)])
def test_every_tile_of_the_triangle_is_written(rows, device):
    matrix = gaussian(3, rows, 40).to(device)
    started = launch(matrix, tiles=Tiles(16, 16, 16, 4, 2))
    started.result.fill_(torch.nan)
    started.run()
    assert_close(started.result, product, matrix)


@pytest.mark.parametrize(
    "view",
    [
        lambda m: m.mT,
        lambda m: m.flip(0),
        lambda m: m[:, ::2],
        lambda m: m[..., 1:-1],
        lambda m: m[:1].expand(3, -1, -1),
    ],
)
def test_strides_do_not_matter(view, device):
    matrix = view(gaussian(2, 34, 50).to(device))
    assert_close(gram(matrix), product, matrix)


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (0, 0, 0)])
def test_nothing_gives_nothing(shape, device):
    assert gram(torch.zeros(shape, device=device)).shape == (shape[0], shape[1], shape[1])


def test_nothing_to_sum_gives_zeros(device):
    assert not gram(torch.zeros(2, 5, 0, device=device)).any()
