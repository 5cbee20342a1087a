"""Building the extension: what a wheel with it is called and holds, and what a build that cannot be made says."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    """The functions of `setup.py`."""
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    monkeypatch.chdir(ROOT)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="NOT TESTED: no g++ here")
def test_a_wheel_with_the_cpu_library_is_for_every_python_3_of_its_platform(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("*.so", "_extension.json", "__pycache__")
    for name in ("csrc", "lasertri"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source]
    environment = os.environ | {"LASERTRI_BUILD_CPU": "1"}
    subprocess.run(build, check=True, capture_output=True, env=environment)
    wheel = next(tmp_path.glob("*.whl"))
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"lasertri/_cpu.so", "lasertri/_extension.json"} <= set(names)
    assert "lasertri/_cuda.so" not in names


def test_a_build_without_a_compiler_is_refused(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("NVCC", raising=False)
    with pytest.raises(SystemExit, match=r"expected g\+\+ on the PATH, got none; install"):
        script["build_cpu"](tmp_path / "out.so", tmp_path)
    monkeypatch.setenv("CXX", "g++")
    with pytest.raises(SystemExit, match=r"expected nvcc on the PATH, got none; .*LASERTRI_BUILD_CPU=1"):
        script["build_cuda"](tmp_path / "out.so", tmp_path, None, tmp_path)


def test_a_build_without_torch_says_to_turn_build_isolation_off(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="expected torch in the build environment, got none; .*--no-build-isolation"):
        script["torch_folder"]()


def test_a_build_without_cusolver_says_where_it_looked_and_what_to_install(script, tmp_path):
    with pytest.raises(SystemExit, match=rf"cusolverDn\.h and libcusolver in {tmp_path}.*-r requirements-cuda\.txt"):
        script["library"]([tmp_path], "cusolver", "cusolverDn.h")


def test_a_compiler_of_another_cuda_than_torch_s_is_refused(script, tmp_path, monkeypatch):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.1'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("NVCC", str(nvcc))
    monkeypatch.setenv("CXX", "g++")
    with pytest.raises(SystemExit, match=r"expected nvcc of torch's CUDA 13\.0, got nvcc of 12\.8"):
        script["build_cuda"](tmp_path / "out.so", tmp_path, "13.0", tmp_path)


def test_a_compiler_that_fails_is_fatal(script):
    with pytest.raises(SystemExit, match="expected false to succeed, got exit code 1; its messages are above"):
        script["run"]("false")
