"""PiSSA's start of one linear layer by peft and by lasertri, in turn: `python -m benchmarks.bench_pissa`.

First how good they are: what the residual weight keeps beyond the least that a split of this rank leaves, by FP64
singular values. Then seconds, side by side in every round. Weights are random, whose flat spectra are the hardest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from benchmarks.record import machine_record, write_record
from lasertri.integrations.peft import pissa_init

SHAPES = ((576, 576), (1536, 576), (2048, 2048), (1024, 4096))
PEFTS = LoraLayer.pissa_init
ROUTES: dict[str, tuple[Callable[..., None], str]] = {
    "peft, pissa": (PEFTS, "pissa"),
    "peft, pissa_niter_4": (PEFTS, "pissa_niter_4"),
    "lasertri": (pissa_init, "pissa"),
}


def started(weight: Tensor, rank: int, route: str) -> tuple[Tensor, float]:
    """The residual weight, and the seconds that it took."""
    rows, columns = weight.shape
    LoraLayer.pissa_init, how = ROUTES[route]
    layer = nn.Sequential(nn.Linear(columns, rows, bias=False))
    layer[0].weight.data.copy_(weight)
    config = LoraConfig(target_modules=["0"], r=rank, lora_alpha=rank, init_lora_weights=how)
    start = time.perf_counter()
    made = get_peft_model(layer, config)
    return made.get_submodule("base_model.model.0").get_base_layer().weight, time.perf_counter() - start


@torch.no_grad()
def main(
    rank: Annotated[int, typer.Option(help="Of the adapter.")] = 16,
    rounds: Annotated[int, typer.Option(help="Each route runs once in each.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Record, by default in benchmarks/results.")] = None,
) -> None:
    """Check, time and record."""
    torch.set_num_threads(threads)
    machine, rows = machine_record("peft"), []
    for shape in SHAPES:
        torch.manual_seed(0)
        weight = torch.randn(shape)
        least = torch.linalg.svdvals(weight.double())[rank:].square().sum()
        seconds: dict[str, list[float]] = {route: [] for route in ROUTES}
        excess = {}
        for _ in range(1 + rounds):  # the first warms up
            for route in ROUTES:
                residual, took = started(weight, rank, route)
                excess[route] = float(residual.double().square().sum() / least) - 1
                seconds[route].append(took)
        for route, (_, *own) in seconds.items():
            ratio = statistics.median(one / pefts for one, pefts in zip(own, seconds["peft, pissa"][1:], strict=True))
            rows.append({"shape": shape, "route": route, "excess": excess[route], "seconds": own, "beside peft": ratio})
            typer.echo(
                f"{shape[0]:4} × {shape[1]:4} {route:20} residual {excess[route]:.1e} above the least, "
                f"{statistics.median(own):.3f} s, {ratio:.2f} of peft's"
            )
    figures = {"rank": rank, "threads": threads, "rows": rows}
    typer.echo(f"written to {write_record('bench_pissa', figures, out, machine)}")


if __name__ == "__main__":
    typer.run(main)
