"""Metadata is in pyproject.toml; this file builds the extension, only where it is asked for.

LASERTRI_BUILD_CUDA=1 builds both libraries with g++ and nvcc, LASERTRI_BUILD_CPU=1 the one that needs no nvcc. They
hold no Python symbols and keep to torch's stable ABI, so a wheel serves every Python 3 and every torch from 2.10.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

METADATA = "_extension.json"
CSRC = Path("csrc")
ARCHITECTURES = ("sm_80", "sm_90")
FLAGS = ("-O3", "-std=c++17", "-shared", "-DTORCH_TARGET_VERSION=0x020a000000000000")


class BuildError(SystemExit):
    """A build that was asked for and cannot be made: pip shows the sentence and stops."""

    def __init__(self, sentence: str) -> None:
        super().__init__(f"lasertri: {sentence}")


def run(*command: str | Path, **variables: str) -> str:
    """Run a compiler, with environment variables, and return what it printed."""
    line = [str(word) for word in command]
    print(*line, flush=True)
    environment = os.environ | variables
    done = subprocess.run(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment
    )
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise BuildError(f"expected {line[0]} to succeed, got exit code {done.returncode}; its messages are above")
    return done.stdout


def compiler(name: str, variable: str, advice: str) -> str:
    """Path of a compiler."""
    path = os.environ.get(variable) or shutil.which(name)
    if path is None:
        raise BuildError(f"expected {name} on the PATH, got none; {advice}")
    return path


def torch_folder() -> tuple[Path, str, str | None]:
    """Where torch is, its version, and its CUDA version."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise BuildError(
            "expected torch in the build environment, got none; install torch, then add --no-build-isolation"
        ) from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        raise BuildError(f"expected torch 2.10 or later, got {torch.__version__}; upgrade torch")
    return Path(torch.__file__).parent, torch.__version__, torch.version.cuda


def cuda_folders(nvcc: str, major: str) -> list[Path]:
    """Where CUDA headers and libraries may be: NVIDIA's wheels, which a CUDA torch loads, then the toolkit."""
    toolkit = os.environ.get("CUDA_HOME") or Path(os.path.realpath(nvcc)).parent.parent
    wheels = importlib.util.find_spec("nvidia")
    homes = wheels.submodule_search_locations or () if wheels else ()
    return [*(Path(p) for home in homes for p in sorted(glob.glob(f"{home}/cu{major}"))), Path(toolkit)]


def library(folders: list[Path], name: str, header: str) -> tuple[Path, Path]:
    """The folder of a header and the shared library beside it; wheels ship libraries with a version in their name."""
    for folder in folders:
        include, found = folder / "include", sorted(glob.glob(f"{folder}/lib*/lib{name}.so*"))
        if (include / header).is_file() and found:
            return include, Path(found[-1])
    raise BuildError(
        f"expected {header} and lib{name} in {' or '.join(str(f) for f in folders)}, got neither; "
        "pip install -r requirements-cuda.txt"
    )


def build_cpu(out: Path, torch: Path) -> None:
    """`_cpu.so`: factors blocks with torch's BLAS and LAPACK."""
    gxx = compiler("g++", "CXX", "install a C++17 compiler")
    source, headers = CSRC / "cpu" / "block_svd.cpp", torch / "include"
    run(gxx, *FLAGS, "-fPIC", "-fvisibility=hidden", f"-ffile-prefix-map={headers}=torch", "-Wall",
         "-isystem", headers, source, "-o", out,
        "-L", torch / "lib", "-ltorch_cpu")  # fmt: skip


def build_cuda(out: Path, torch: Path, torch_cuda: str | None, temporary: Path, *, stays: bool = False) -> str:
    """`_cuda.so`: factors blocks with cuBLAS and cuSOLVER. Returns the CUDA version.

    A library that `stays` on this machine may look for them where they are now.
    """
    gxx = compiler("g++", "CXX", "install a C++17 compiler")
    nvcc = compiler("nvcc", "NVCC", "install the CUDA toolkit, or build for the CPU alone with LASERTRI_BUILD_CPU=1")
    version = re.search(r"release (\d+)\.(\d+)", run(nvcc, "--version"))
    cuda = ".".join(version.groups()) if version else "unknown"
    if torch_cuda and torch_cuda.split(".")[0] != cuda.split(".")[0]:
        raise BuildError(f"expected nvcc of torch's CUDA {torch_cuda}, got nvcc of {cuda}; put the other on the PATH")
    major = cuda.split(".")[0]
    folders = cuda_folders(nvcc, major)
    cusolver_headers, cusolver = library(folders, "cusolver", "cusolverDn.h")
    cublas_headers, cublas = library(folders, "cublas", "cublas_v2.h")
    # A torch without CUDA has no such library to link to. The linker only notes its name: an empty one will do.
    link_folder = torch / "lib"
    if not (link_folder / "libtorch_cuda.so").exists():
        link_folder = temporary
        run(gxx, "-shared", "-Wl,-soname,libtorch_cuda.so", "-x", "c++", os.devnull, "-o",
            temporary / "libtorch_cuda.so")  # fmt: skip
    targets = [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}" for arch in ARCHITECTURES]
    targets.append("-gencode=arch=compute_90,code=compute_90")  # PTX, which the driver compiles for later GPUs
    here = [str(cusolver.parent), str(cublas.parent)] if stays else []
    run(nvcc, "-ccbin", gxx, *FLAGS, "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall", "-cudart", "shared",
        *targets, "-isystem", torch / "include", "-isystem", cusolver_headers, "-isystem", cublas_headers,
        CSRC / "cuda" / "block_svd.cu", "-o", out, "-L", torch / "lib", "-ltorch_cpu", "-L", link_folder,
        "-Xlinker", "--no-as-needed", "-ltorch_cuda",
        *(word for found in (cusolver, cublas) for word in ("-L", found.parent, f"-l:{found.name}")),
        # where to look at run time, for the linker; as an option, nvcc's shell would expand the dollar
        LD_RUN_PATH=":".join(dict.fromkeys([f"$ORIGIN/../nvidia/cu{major}/lib", *here]))
        )  # fmt: skip
    return cuda


class BuildLibraries(build_ext):
    """Calls the compilers directly: the libraries are no Python modules."""

    def get_ext_filename(self, fullname: str) -> str:
        """File of a library: no Python version in it."""
        return fullname.replace(".", os.sep) + ".so"

    def build_extensions(self) -> None:
        """Build every library that was asked for, and write down with what."""
        torch, torch_version, torch_cuda = torch_folder()
        temporary = Path(self.build_temp)
        temporary.mkdir(parents=True, exist_ok=True)
        cuda = None
        for extension in self.extensions:
            out = Path(self.get_ext_fullpath(extension.name))
            out.parent.mkdir(parents=True, exist_ok=True)
            if extension.name.endswith("_cuda"):
                cuda = build_cuda(out, torch, torch_cuda, temporary, stays=bool(self.inplace or self.editable_mode))
            else:
                build_cpu(out, torch)
        built = {"torch": torch_version, "cuda": cuda, "architectures": ", ".join(ARCHITECTURES) if cuda else None}
        (out.parent / METADATA).write_text(json.dumps(built) + "\n", encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        """For an editable install: the metadata goes along, and no library of an earlier build stays."""
        package = Path("lasertri")
        for stale in (package / "_cpu.so", package / "_cuda.so"):
            stale.unlink(missing_ok=True)
        super().copy_extensions_to_source()
        shutil.copy(Path(self.build_lib) / package / METADATA, package)


class Wheel(bdist_wheel):
    """A wheel with the libraries depends on the platform, not on the Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        """The tag: `py3-none-<platform>` with libraries, pure without."""
        tag = super().get_tag()
        return ("py3", "none", tag[2]) if self.distribution.ext_modules else tag


asked = [name for name in ("CUDA", "CPU") if os.environ.get(f"LASERTRI_BUILD_{name}", "0") not in ("", "0")]
names = ["_cpu", "_cuda"] if "CUDA" in asked else ["_cpu"] if asked else []
setup(
    ext_modules=[Extension(f"lasertri.{name}", sources=[]) for name in names],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
)
