"""Whether the extension can run, and what its libraries are made of."""

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from lasertri.ops import extension

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LIBRARIES = {kind: extension.FOLDER / f"_{kind}.so" for kind in ("cpu", "cuda")}
# The shims that live in torch's CUDA library, which a CPU torch lacks.
CUDA_SHIMS = {"aoti_torch_get_current_cuda_stream", "torch_get_cuda_stream_from_pool"}


def built(*kinds):
    missing = [str(LIBRARIES[kind].name) for kind in kinds if not LIBRARIES[kind].exists()]
    return pytest.mark.skipif(bool(missing), reason=f"NOT TESTED: {missing} not built; {extension.BUILD}")


def output(*command):
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"NOT TESTED: no {command[0]} here")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package folder with no libraries yet."""
    monkeypatch.setattr(extension, "FOLDER", tmp_path)
    return tmp_path


def write_metadata(folder):
    built = {"torch": "2.11.0+cu130", "cuda": "13.0", "architectures": "sm_80, sm_90"}
    (folder / "_extension.json").write_text(json.dumps(built))


def test_not_built_says_how_to(folder):
    expected = f"the extension was not built; {extension.BUILD}"
    assert extension.why_not(CPU) == extension.why_not(CUDA) == expected
    assert extension.build_status() == {"_cpu": expected, "_cuda": expected}


def test_built_for_the_cpu_alone_says_so(folder):
    (folder / "_cpu.so").touch()
    assert extension.why_not(CUDA).startswith("the extension was built without its CUDA library; LASERTRI_BUILD_CUDA=1")


def test_a_torch_without_cuda_says_so(folder, monkeypatch):
    write_metadata(folder)
    (folder / "_cuda.so").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert re.match(
        r"its CUDA library was built with torch 2\.11\.0\+cu130, CUDA 13\.0 for sm_80, sm_90, but this torch "
        rf"{re.escape(torch.__version__)} has no CUDA; install a CUDA build",
        extension.why_not(CUDA),
    )


def test_a_torch_before_the_stable_abi_says_so(folder, monkeypatch):
    (folder / "_cpu.so").touch()
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert extension.why_not(CPU).startswith("it needs torch 2.10 or later, this is 2.9.1+cpu; upgrade torch")


@pytest.mark.parametrize("metadata", ["written", "missing", "damaged"])
def test_a_damaged_library_says_what_it_was_built_with(folder, metadata):
    (folder / "_cpu.so").write_bytes(b"\x7fELF and nothing else")
    if metadata == "written":
        write_metadata(folder)
    elif metadata == "damaged":
        (folder / "_extension.json").write_text("{")
    made = "torch 2.11.0+cu130" if metadata == "written" else "an unknown torch"
    expected = f"_cpu.so is damaged or for another torch (built with {made}, this is torch {torch.__version__}): "
    assert extension.why_not(CPU).startswith(expected)
    assert "_cpu.so: " in extension.build_status()["_cpu"].removeprefix(expected)


@built("cuda")
@pytest.mark.skipif(torch.version.cuda is not None, reason="is about a torch without CUDA")
def test_a_library_whose_symbols_this_torch_lacks_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert re.match(
        r"_cuda\.so is damaged or for another torch \(built with.*\.so.*cannot open", extension.why_not(CUDA)
    )


@built("cpu")
def test_a_library_that_loads_says_what_it_was_built_with():
    assert extension.why_not(CPU) is None
    assert extension.build_status()["_cpu"].startswith("loads, built with torch 2")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=built(kind)) for kind in LIBRARIES])
def test_symbols_come_from_torch_s_stable_abi_and_none_from_python(kind):
    lines = output("nm", "-D", "--undefined-only", LIBRARIES[kind]).splitlines()
    names = {line.split()[-1].split("@")[0] for line in lines}
    assert not {name for name in names if re.match(r"_?Py|_ZNK?(2at|3c10|5torch)", name)}
    shims = {name for name in names if re.match("(aoti_)?torch_", name)}
    assert "torch_library_impl" in shims
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    elsewhere = {name for name in shims if not hasattr(torch_cpu, name)}
    assert elsewhere == (CUDA_SHIMS if kind == "cuda" else set())


@built("cuda")
def test_the_cuda_library_needs_the_libraries_that_a_cuda_torch_brings():
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", LIBRARIES["cuda"])))
    assert {"libcusolver.so.12", "libcublas.so.13", "libtorch_cuda.so", "libtorch_cpu.so"} <= needed
    assert not {name for name in needed if name.startswith("libpython")}


@built("cuda")
def test_the_cuda_library_has_machine_code_for_ampere_and_hopper():
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    listed = output(tool, "--list-elf", LIBRARIES["cuda"])
    assert {"sm_80", "sm_90"} <= set(re.findall(r"\.(sm_\d+)\.", listed))
