"""The ops as a kernel of the hub: loaded by `kernels` under a name of its own, beside lasertri, and right."""

import ast
import base64
import errno
import hashlib
import json
import runpy
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools
import torch
import typer

from lasertri.ops.namespace import NAMESPACE

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
import hub_kernel.make  # noqa: E402
from hub_kernel.make import main, make  # noqa: E402

pytest.importorskip("kernels.load")  # where it is not installed, `kernels` is a folder of these tests
import kernels  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("hub") / "lasertri"
    make(made)
    return made


@pytest.fixture(scope="module")
def kernel(folder):
    return kernels.get_local_kernel(folder, backend="cpu")


def test_its_ops_agree_with_the_svd_in_fp64(kernel):
    generator = torch.Generator().manual_seed(0)
    weight, grad = torch.randn(2, 30, 16, generator=generator)
    found = kernel.block_svd(weight, blocks=2)
    smaller = kernel.reduce_blocks(weight, ranks=4, factors=found)
    scores = kernel.score_blocks(weight, grad, factors=found)
    for j, (block, slope) in enumerate(zip(weight.double().chunk(2), grad.double().chunk(2), strict=True)):
        u, sigma, vh = torch.linalg.svd(block, full_matrices=False)
        torch.testing.assert_close(found.sigma[j], sigma)
        torch.testing.assert_close(scores.grad[j], (u * (slope @ vh.mT)).sum(0))
        expected = u[:, :4] * sigma[:4] @ vh[:4]
        torch.testing.assert_close(smaller.chunk(2)[j], expected.float())
    with pytest.raises(kernel.LasertriError, match="expected weight in"):
        kernel.block_svd(weight.long())


def test_it_has_a_name_of_its_own_in_python_and_torch(kernel, folder):
    identity = json.loads((folder / "build/torch-cpu/metadata.json").read_text())["id"]
    assert kernel.__name__ == identity != NAMESPACE
    assert kernel.block_svd.__module__ == f"{identity}.ops.functional"
    assert torch.library.opcheck(
        getattr(torch.ops, identity).lowrank_blocks.default,
        (torch.randn(6, 4), 2, [0, 3, 6], None, "auto", "float64"),
    )
    assert torch.ops.lasertri.lowrank_blocks.default is not getattr(torch.ops, identity).lowrank_blocks.default


def test_it_imports_nothing_but_itself_torch_triton_and_the_standard_library(folder):
    for path in (folder / "torch-ext" / "lasertri").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module)
            assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"torch", "triton"}, path


def test_every_build_tells_its_files(folder, kernel):
    told = kernels.get_loaded_kernels()[-1].metadata.digest.files
    for variant in ("torch-cpu", "torch-cuda"):
        build = folder / "build" / variant
        files = {path.relative_to(build).as_posix(): path for path in build.rglob("*.py")}
        digests = {name: hashlib.sha256(path.read_bytes()).digest() for name, path in files.items()}
        assert {name: base64.b64encode(digest).decode() for name, digest in digests.items()} == told


def test_kernel_builder_finds_every_source(folder):
    told = tomllib.loads((folder / "build.toml").read_text())
    named = {*told["torch"]["src"], *(name for part in told["kernel"].values() for name in part["src"])}
    there = {path.relative_to(folder).as_posix() for path in (folder / "csrc").rglob("*.*")}
    assert named == there | {"torch-ext/torch_binding.cpp"}


def test_a_folder_that_exists_is_left_alone(tmp_path):
    with pytest.raises(typer.BadParameter, match="a folder that does not exist"):
        main(tmp_path)


def test_a_folder_that_cannot_be_written_is_said_and_nothing_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_kernel.make, "write", full)
    with pytest.raises(typer.BadParameter, match="kernel: No space left on device"):
        main(tmp_path / "kernel")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="NOT TESTED: no g++ here")
def test_the_extension_registers_under_the_kernels_name(tmp_path, monkeypatch):
    """Compiled as kernel-builder does, but for the entry of a Python module, whose header kernel-builder brings."""
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    monkeypatch.chdir(ROOT)
    script, made = runpy.run_path(str(ROOT / "setup.py")), tmp_path / "lasertri"
    make(made)
    variant = made / "build" / "torch-cpu"
    described = json.loads((variant / "metadata.json").read_text())
    name = described["id"] = f"{described['id']}_built"  # as of another build: the one without is loaded already
    (variant / "metadata.json").write_text(json.dumps(described))
    script["build_cpu"].__globals__["FLAGS"] = (*script["FLAGS"], f"-DTORCH_EXTENSION_NAME={name}")
    script["build_cpu"].__globals__["CSRC"] = made / "csrc"
    script["build_cpu"](variant / f"{name}.abi3.so", Path(torch.__file__).parent)
    kernel, weight = kernels.get_local_kernel(made, backend="cpu"), torch.randn(12, 20)
    found = kernel.block_svd(weight, backend="cuda")
    torch.testing.assert_close(found.sigma[0], torch.linalg.svdvals(weight.double()))
