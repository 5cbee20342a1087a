"""Elements further from the first than 32 bits count, at strides that 32 bits hold: no offset may be of 32 bits."""

import mmap
from dataclasses import replace

import pytest
import torch

from lasertri.ops.kernels import diagonal, gram, prefix_product, scaled_product

APART = 2**30  # twice that is beyond 32 bits
OPERANDS = {
    "gram": ("matrix",),
    "diagonal": ("left", "matrix", "right"),
    "prefix_product": ("left", "right", "out", "bias"),
    "scaled_product": ("left", "scale", "right", "base", "out"),
}


def integers(*shape):
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(len(shape))).half()


def spread(values, device, folder):
    """The same values, each dimension at such a stride, and the first of them alone.

    On a CPU they lie in a file of holes, of which only pages that are touched take any room.
    """
    strides = [APART + 10**i for i in range(values.ndim)]  # no two elements in one place
    size = 1 + sum((n - 1) * stride for n, stride in zip(values.shape, strides, strict=True))
    if device.type == "cuda":
        if torch.cuda.mem_get_info(device)[0] < 1.1 * values.itemsize * size:
            pytest.skip(f"needs {values.itemsize * size / 1e9:.0f} GB of the GPU")
        whole = first = torch.empty(size, dtype=values.dtype, device=device)
    else:
        with (folder / "holes").open("wb+") as file:
            file.truncate(values.itemsize * size)
            memory = mmap.mmap(file.fileno(), 0)
        (folder / "holes").unlink()
        whole = torch.frombuffer(memory, dtype=values.dtype)
        first = torch.frombuffer(memory, dtype=values.dtype, count=1)
    return whole.as_strided(values.shape, strides).copy_(values), first


@pytest.mark.parametrize(
    ("kernel", "operand"), [(kernel, each) for kernel, names in OPERANDS.items() for each in names]
)
def test_every_operand_may_lie_as_far_apart_as_memory_reaches(kernel, operand, device, tmp_path):
    left, right, base, bias, scale = (integers(3, *size) for size in ((4, 5), (5, 3), (4, 3), (3,), (5,)))
    ranks = (1, 5, 3)
    given, make, expected = {
        "gram": ({"matrix": left}, gram.launch, left @ left.mT),
        "diagonal": (
            {"left": base, "matrix": left, "right": right},
            diagonal.launch,
            (base * (left @ right)).sum(-2),
        ),
        "prefix_product": (
            {"left": left, "right": right, "ranks": ranks, "out": torch.zeros(3, *base.shape).half(), "bias": bias},
            prefix_product.launch,
            torch.stack([left[..., :k] @ right[:, :k] for k in ranks]) + bias[:, None],
        ),
        "scaled_product": (
            {"left": left, "scale": scale, "right": right, "base": base, "out": torch.zeros_like(base)},
            scaled_product.launch,
            base + (left * scale[:, None]) @ right,
        ),
    }[kernel]
    given = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    given[operand], first = spread(given[operand], device, tmp_path)
    launch = make(**given, compute=torch.float32)
    # interpreted, a tensor's whole storage is copied: the kernel is given the first element, and the strides
    result = replace(launch, arguments={**launch.arguments, operand: first}).run()
    if kernel == "diagonal":
        result = result.sum(0)
    assert torch.equal(result.cpu().float(), expected.float())
