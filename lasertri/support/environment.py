"""What a figure was measured with: versions, devices and the backends that can run."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from lasertri.ops.backends import AUTO_REASON, BACKENDS, choose_backend
from lasertri.version import __version__

PACKAGES = ("torch", "triton", "transformers", "peft", "datasets", "safetensors", "numpy")


def environment() -> dict[str, object]:
    """Versions and devices, for a report or a benchmark record."""
    return {
        "lasertri": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **{name: _version(name) for name in PACKAGES},
        "devices": devices(),
        "threads": torch.get_num_threads(),
        "waiting": os.environ.get("OMP_WAIT_POLICY", "ACTIVE").lower(),  # of threads, see cli/threads.py
    }


def devices() -> list[str]:
    """The processor, then every CUDA device torch sees."""
    cuda = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return [f"cpu {_processor()}", *cuda]


def backend_status() -> dict[str, dict[str, str]]:
    """For every kind of device, which backends can run (or why not), and which one `auto` takes and why."""
    status = {}
    for kind in ("cpu", "cuda"):
        device = torch.device(kind)
        lines = {name: backend.why_not(device) or "can run" for name, backend in BACKENDS.items()}
        if "can run" in lines.values():
            chosen = choose_backend("auto", device)
            lines["auto"] = f"takes {chosen.name}: {AUTO_REASON[kind]}"
        status[kind] = lines
    return status


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
