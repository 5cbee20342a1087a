"""Tests of `tests/gpu` rehearsed without a device: the CUDA library on the shim, the other backends on the CPU."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import test_cuda_library
import test_numerics
import test_sanitized
import torch

from lasertri.ops import extension
from lasertri.ops.backends import BACKENDS
from shim.build import build
from shim.library import Libraries

THESE = {
    test_cuda_library: (
        "test_factors_are_those_of_each_block",
        "test_blocks_of_several_panels",
        "test_fp32_is_fp32_and_not_tf32",
        "test_ill_conditioned_blocks_are_factored_again",
        "test_a_value_that_is_not_finite_names_block_and_matrix",
        "test_each_block_s_status_is_its_own",
        "test_repetition_gives_the_same_bits_on_a_side_stream_too",
    ),
    test_numerics: (
        "test_ops_are_those_on_the_cpu",
        "test_the_promises_hold_up_to_condition_1e4",
        "test_truncations_keep_to_the_optimal_residual_with_tf32_allowed",
        "test_results_are_the_same_bits_when_computed_again",
        "test_a_value_that_is_not_finite_is_an_error",
        "test_lasers_drop_in_is_exact_and_factors_once",
    ),
    test_sanitized: ("test_ops_of_awkward_shapes",),
}
globals().update({name: getattr(module, name) for module, names in THESE.items() for name in names})


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    """Of its own: these tests run in the main thread, whose handles stay open."""
    return Libraries.load(build(tmp_path_factory.mktemp("device") / "built"))


@pytest.fixture(params=["reference", "gram", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def rehearsed(monkeypatch: pytest.MonkeyPatch, libraries: Libraries) -> None:
    shim = libraries.batched
    shim.reset()
    shim.schedule("oldest first")

    @contextlib.contextmanager
    def current(stream):
        shim.use(stream)
        yield
        shim.use(0)

    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "synchronize", shim.settle)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: 1)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=shim.settle))
    monkeypatch.setattr(extension, "why_not", lambda device: None)
    able = dataclasses.replace(BACKENDS["cuda"], obstacle=lambda device: None)  # whether or not it is built here
    monkeypatch.setitem(BACKENDS, "cuda", able)
    monkeypatch.setattr(extension, "factor_blocks", shim.factor_blocks)
