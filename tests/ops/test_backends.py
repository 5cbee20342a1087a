"""Which backend is taken, and why."""

import importlib.metadata
import importlib.util

import pytest
import torch

from lasertri import LasertriError, block_svd, use_backend
from lasertri.ops import gram, reference
from lasertri.ops.backends import BACKENDS, choose_backend

CPU = torch.device("cpu")


def test_a_backend_asked_for_by_name_is_taken():
    for name, backend in BACKENDS.items():
        if backend.why_not(CPU) is None:
            assert choose_backend(name, CPU).name == name
    with pytest.raises(LasertriError, match="got 'magma'"):
        choose_backend("magma", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(LasertriError, match="'gram' cannot run on cuda: torch sees no CUDA device"):
        choose_backend("gram", torch.device("cuda"))


@pytest.mark.parametrize(("name", "method"), [("reference", "gram"), ("gram", "direct")])
def test_a_method_that_a_backend_lacks_is_an_error_listing_those_it_has(name, method):
    with pytest.raises(LasertriError, match=rf"'{name}' has, \['.*got '{method}'"):
        block_svd(torch.ones(2, 3), backend=name, method=method)
    with pytest.raises(LasertriError, match=r"\['auto', 'gram', 'direct'\], got 'qr'"):
        block_svd(torch.ones(2, 3), method="qr")


def test_auto_finds_a_backend_that_has_the_method():
    assert choose_backend("auto", CPU).name == "gram"
    assert choose_backend("auto", CPU, "gram").name == "gram"
    assert "direct" in choose_backend("auto", CPU, "direct").methods


def test_a_triton_that_will_not_do_is_said(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.4.0")
    with pytest.raises(LasertriError, match="'triton' cannot run on cpu: .*need triton 3.6 or later, this is 3.4.0"):
        choose_backend("triton", CPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LasertriError, match="'triton' cannot run on cpu: triton is not installed; .*`pip install"):
        choose_backend("triton", CPU)


@pytest.mark.parametrize(
    ("triton", "numpy", "fails"),
    [("3.6.0", "2.3.5", False), ("3.6.0", "2.4.0", True), ("3.6.0", "2.5.0", True), ("3.7.0", "2.5.0", False)],
)
def test_an_interpreter_that_numpy_breaks_is_said(triton, numpy, fails, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", {"triton": triton, "numpy": numpy}.__getitem__)
    obstacle = BACKENDS["triton"].why_not(CPU)
    assert obstacle == (
        f"the interpreter of triton {triton} fails with numpy {numpy}; install 'numpy<2.4', or triton 3.7"
        if fails
        else None
    )


def test_a_device_that_no_backend_serves_is_an_error_saying_which_do():
    with pytest.raises(LasertriError, match="on a CPU or CUDA device, got mps"):
        choose_backend("auto", torch.device("mps"))
    with pytest.raises(LasertriError, match="'gram' cannot run on mps: .*CPU and CUDA"):
        choose_backend("gram", torch.device("mps"))


def test_use_backend_decides_what_auto_means_until_it_is_left(monkeypatch):
    calls = []
    for module in (gram, reference):
        original = module.block_svd
        monkeypatch.setattr(
            module, "block_svd", lambda *a, _m=module, _f=original: calls.append(_m.__name__.split(".")[-1]) or _f(*a)
        )
    weight = torch.randn(4, 6)
    with use_backend("reference"):
        block_svd(weight)
        block_svd(weight, backend="gram")
        with use_backend("auto"):
            block_svd(weight)
    block_svd(weight)
    assert calls == ["reference", "gram", "gram", "gram"]
    with pytest.raises(LasertriError, match="got 'magma'"), use_backend("magma"):
        pass
