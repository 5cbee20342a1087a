"""The ops as a kernel of the Hugging Face hub: `python -m hub_kernel.make OUT`.

OUT is what kernel-builder builds the extension from, and has under `build/` what `kernels.get_kernel` loads without it.
All of it is made of the package's own files, whose imports become relative: a kernel is loaded under a name of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import tomllib
from pathlib import Path

import typer

HERE = Path(__file__).parent
ROOT = HERE.parent
PACKAGE = ROOT / "lasertri"
IMPORT = re.compile(r"^( *)from lasertri\.", re.MULTILINE)
INIT = '''"""lasertri: weight matrices factored, scored, reduced and stepped block by block."""

from . import ops
from .errors import LasertriError
from .ops import *

__all__ = ["LasertriError", *ops.__all__]
'''


def sources() -> dict[str, str]:
    """The kernel's Python files by path: the ops, and the one file outside that they import."""
    paths = [PACKAGE / "errors.py", *sorted((PACKAGE / "ops").rglob("*.py"))]
    files = {"__init__.py": INIT}
    for path in paths:
        inside = path.relative_to(PACKAGE)
        up = "." * len(inside.parts)  # from the file's folder to the kernel's
        files[inside.as_posix()] = IMPORT.sub(rf"\1from {up}", path.read_text(encoding="utf-8"))
    return files


def write(folder: Path, files: dict[str, str]) -> None:
    """Write files and the folders they lie in."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def metadata(general: dict[str, object], backend: str, files: dict[str, str]) -> str:
    """What `kernels` reads first. The id, which is the kernel's name in Python and torch, tells its content."""
    digests = {name: hashlib.sha256(text.encode()) for name, text in sorted(files.items())}
    content = hashlib.sha256(b"".join(digest.digest() for digest in digests.values())).hexdigest()
    told = {
        "name": general["name"],
        "id": f"_{general['name']}_{backend}_{content[:7]}",
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {name: base64.b64encode(digest.digest()).decode() for name, digest in digests.items()},
        },
    }
    return json.dumps(told, indent=2) + "\n"


def make(out: Path) -> None:
    """Make the folder, which must not exist."""
    files = sources()
    general = tomllib.loads((HERE / "build.toml").read_text(encoding="utf-8"))["general"]
    out.mkdir(parents=True)
    for name in ("build.toml", "flake.nix", "CARD.md"):
        shutil.copy(HERE / name, out)
    shutil.copy(HERE / "CARD.md", out / "README.md")  # the hub shows this one; kernel-builder makes it of the card
    shutil.copy(ROOT / "LICENSE", out)
    shutil.copytree(ROOT / "csrc", out / "csrc")
    write(out / "torch-ext" / general["name"], files)
    shutil.copy(HERE / "torch_binding.cpp", out / "torch-ext")
    for backend in general["backends"]:
        write(out / "build" / f"torch-{backend}", files | {"metadata.json": metadata(general, backend, files)})


def main(out: Path) -> None:
    """Make the kernel's folder OUT, which must not exist yet."""
    if out.exists():
        raise typer.BadParameter(f"expected a folder that does not exist, got {out}; give another, or remove it")
    try:
        make(out)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        problem = error.strerror or error  # which copying a whole folder does not give
        raise typer.BadParameter(f"expected a folder that can be written, got {out}: {problem}") from error
    typer.echo(f"{out}: `kernels.get_local_kernel` loads it")


if __name__ == "__main__":
    typer.run(main)
