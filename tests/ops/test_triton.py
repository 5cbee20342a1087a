import pytest
import torch

triton = pytest.importorskip("lasertri.ops.triton", reason="triton is not installed", exc_type=ImportError)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize("large_tiles", [True, False])
@pytest.mark.parametrize("compute", [torch.float64, torch.float32])
def test_fp64_products_that_triton_would_halve_are_torchs(capability, large_tiles, compute, monkeypatch):
    monkeypatch.setattr(triton, "capability_of", lambda device: capability)
    monkeypatch.setattr(triton, "LARGE_FP64_TILES", large_tiles)
    product = triton._where_fast(lambda *_, compute: "fused", lambda *_, compute: "plain")
    halved = (capability, large_tiles, compute) == ((9, 0), False, torch.float64)
    assert product(torch.ones(1), compute=compute) == ("plain" if halved else "fused")
