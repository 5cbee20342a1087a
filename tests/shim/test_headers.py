"""The shim's functions have the signatures that NVIDIA's headers give them."""

import re
import runpy
import shutil
import subprocess

import pytest
import setuptools

from shim.build import HERE, ROOT, rewrite


@pytest.mark.slow
def test_the_shim_compiles_against_nvidia_s_headers(tmp_path, monkeypatch):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("NOT TESTED: no CUDA toolkit here")
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    script = runpy.run_path(str(ROOT / "setup.py"))
    [major] = re.findall(r"release (\d+)", script["run"](nvcc, "--version"))
    folders = script["cuda_folders"](nvcc, major)
    try:
        cusolver, _ = script["library"](folders, "cusolver", "cusolverDn.h")
        cublas, _ = script["library"](folders, "cublas", "cublas_v2.h")
    except SystemExit as error:
        pytest.skip(f"NOT TESTED: {error}")
    rewrite(tmp_path / "sources")
    command = [nvcc, "-x", "c++", "-std=c++17", "-c", "-DSHIM_REAL_HEADERS", "-I", tmp_path / "sources"]
    command += ["-isystem", cusolver, "-isystem", cublas, HERE / "shim.cpp", "-o", tmp_path / "shim.o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
