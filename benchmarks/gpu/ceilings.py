"""The two ceilings of a device: bytes copied and products summed in a second."""

from __future__ import annotations

import functools

import torch

from benchmarks.gpu.session import Session

SIDE, REHEARSED_SIDE = 8192, 64
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32, "float64": torch.float64}


def measure(session: Session) -> None:
    """Copy, and GEMM in BF16, TF32, FP32 and FP64, by torch (cuBLAS), on random values."""
    side = REHEARSED_SIDE if session.rehearsal else SIDE
    source = torch.randn(4 * side, side, device=session.device)
    target = torch.empty_like(source)
    seconds = session.time(lambda: target.copy_(source))
    assert torch.equal(source, target)
    if seconds:
        session.ceilings["copy"] = 2 * source.nbytes / seconds
    for name, dtype in DTYPES.items():
        session.attempt(f"ceiling {name}", functools.partial(_measure_gemm, session, name, dtype, side))
    if not session.rehearsal:
        # three TF32 products make one of FP32 precision
        if "tf32" in session.ceilings:
            session.ceilings["tf32x3"] = session.ceilings["tf32"] / 3
        rates = {name: f"{rate / 1e12:.3g} T/s" for name, rate in session.ceilings.items()}
        print("ceilings:", rates, flush=True)


def _measure_gemm(session: Session, name: str, dtype: torch.dtype, side: int) -> None:
    a, b = (torch.randn(side, side, device=session.device).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        seconds = session.time(lambda: a @ b)
    finally:
        torch.set_float32_matmul_precision(before)
    if seconds:
        session.ceilings[name] = 2 * side**3 / seconds
