"""`lasertri info` and `lasertri ls`."""

from __future__ import annotations

from typing import Any

from lasertri.cli import options
from lasertri.cli.app import command, print_result
from lasertri.search.strategies import STRATEGIES


@command("lasertri info --json")
def info(as_json: options.Json = False) -> None:
    """Show versions, devices, the extension, and which backends can run or why not."""
    from lasertri.cli import tables
    from lasertri.ops.extension import build_status
    from lasertri.support.environment import backend_status, environment

    result: dict[str, Any] = environment() | {"extension": build_status(), "backends": backend_status()}
    plain = {key: str(value) for key, value in result.items() if isinstance(value, str | int | None)}
    lines = [f"{key:12} {value}" for key, value in plain.items()]
    lines += [f"{'device':12} {device}" for device in result["devices"]]
    lines += [f"{'extension':12} {library}: {status}" for library, status in result["extension"].items()]
    lines += [
        f"{'backend':12} {kind}: {name}, {status}"
        for kind, backends in result["backends"].items()
        for name, status in backends.items()
    ]
    sections = {
        "versions": plain,
        "devices": {str(number): device for number, device in enumerate(result["devices"])},
        "extension": result["extension"],
        **{f"backends on {kind}": backends for kind, backends in result["backends"].items()},
    }
    print_result(result, as_json, "\n".join(lines), lambda: tables.named(sections))


@command("lasertri ls", name="ls")
def list_names(as_json: options.Json = False) -> None:
    """List tasks, architectures, strategies and backends by the names that options take."""
    from lasertri.cli import tables
    from lasertri.data.papers.registry import TASKS
    from lasertri.model.architectures import ARCHITECTURES
    from lasertri.ops.backends import BACKENDS

    names = {
        "tasks": {
            name: f"{task.size:,} samples of {task.source.repository}, {task.source.config}"
            for name, task in TASKS.items()
        },
        "architectures": {name: ", ".join(where.roles) for name, where in ARCHITECTURES.items()},
        "strategies": {
            name: f"scored on {strategy.gradients or 'nothing'}, measured on {strategy.evaluation}"
            for name, strategy in STRATEGIES.items()
        },
        "backends": {name: backend.description for name, backend in BACKENDS.items()},
    }
    width = max(len(name) for listed in names.values() for name in listed)
    lines = [
        line for kind, listed in names.items() for line in (kind, *(f"  {n:{width}}  {w}" for n, w in listed.items()))
    ]
    print_result(names, as_json, "\n".join(lines), lambda: tables.named(names))
