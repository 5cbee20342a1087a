import pytest
import torch

from lasertri.ops.kernels.tiles import TABLE, UNALIGNED, aligned, choose_tiles

WHOLE = torch.empty(3, 64, 96, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("operand", "expected"),
    [
        (WHOLE, True),
        (WHOLE.mT, True),
        (WHOLE[..., 16:], True),
        (WHOLE[:, :, :-1], False),
        (WHOLE[:, :17], False),
        (WHOLE[..., ::2], False),
        (WHOLE.flatten()[1:1025].view(16, 64), False),
        (torch.empty(3, 64, 95)[..., :80], False),
        (WHOLE[:1].expand(3, -1, -1), True),
    ],
)
def test_what_is_aligned(operand, expected):
    assert aligned(operand) is expected
    assert aligned(WHOLE, operand) is expected


@pytest.mark.parametrize(
    ("compute", "precision", "name"), [(torch.float64, "ieee", "float64"), (torch.half, "ieee", "half")]
)
def test_operands_that_are_not_aligned_have_smaller_tiles(compute, precision, name):
    assert choose_tiles(compute, precision, 512, 512, 512, [WHOLE]) == TABLE[name][80]
    assert choose_tiles(compute, precision, 512, 512, 512, [WHOLE, WHOLE[..., 1:]]) == UNALIGNED[name]
