"""How far a kernel may be from the FP64 result: a few times what plain torch is at the same precision."""

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF = (torch.bfloat16, torch.float16)
# Interpreted, FP32 products are FP32 whatever is asked for. On a GPU TF32 keeps 10 bits of each operand, and tensor
# cores cut off what they add: `test_errors.py` has these from a model of them.
PRECISIONS = {"ieee": 4.0, "tf32x3": 64.0, "tf32": 2.0**14}
HALF_PRODUCTS = 16.0


def assert_close(
    got: Tensor, formula: Callable[..., Tensor], *inputs: Tensor, times: float = 4.0, sums: torch.dtype | None = None
) -> None:
    """The largest error is at most some times that of the formula in plain torch, computed in the type of the sums."""
    if sums is None:
        sums = torch.promote_types(got.dtype, torch.float32)
    if sums == torch.float64:
        times = 16.0  # plain torch is then the measure of itself, and another order of summation costs several units
    exact = formula(*(value.double() for value in inputs))
    plain = formula(*(value.to(sums) for value in inputs)).to(got.dtype)
    assert got.shape == exact.shape
    if got.numel() == 0:
        return
    assert got.isfinite().all()
    error, allowed = (float((value.double() - exact).abs().max()) for value in (got, plain))
    unit = max(torch.finfo(sums).eps, torch.finfo(got.dtype).eps) * float(exact.abs().max())
    assert error <= times * max(allowed, unit), f"error {error:.2e}, plain torch {allowed:.2e}, unit {unit:.2e}"
