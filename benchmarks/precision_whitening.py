"""How far a step's whitened gradient is from the FP64 reference, by every route; exit code 1 where it is too far.

python benchmarks/precision_whitening.py --model SmolLM2-135M-Instruct --data sports_understanding.jsonl

The routes are those of a CPU (eigenproblems), of a GPU, and of one that is as fast in FP64 (products and passes), all
run here on a CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from precision_ops import some_mlps
from record import write_record
from spectra import tokens
from torch import Tensor

from lasertri import load_model, load_tokenizer, whiten_blocks
from lasertri.data.files import as_samples
from lasertri.language.samples import EncodedSamples
from lasertri.ops import eigen, krylov, whiten
from lasertri.search.tokens import Room, gather_tokens

DAMPING = 0.1
RANK = 8
SAMPLES = 80
SHAPES = ((700, 1024, 1536), (700, 1536, 1024), (1531, 1021, 523), (1531, 523, 1021))  # tokens, m and n
EXCESS = 1e-6  # of the squared residual over the optimum, in FP64; in FP32 σ² is known to eps32 · size / damping


@dataclass(frozen=True)
class Route:
    """As a device goes, in a dtype.

    Attributes:
        products: whether by products and passes.
        fp64: whether the device is as fast in FP64.
    """

    products: bool
    fp64: bool
    precision: str

    @contextmanager
    def taken(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(patch.object(whiten, "BY_PRODUCTS", {"cpu"} if self.products else set[str]()))
            stack.enter_context(patch.object(eigen, "by_products", lambda _: self.fp64))
            if self.products:
                stack.enter_context(patch.dict(krylov.LOOKS, cpu=krylov.LOOKS["cuda"]))
            yield


ROUTES = {
    "eigenproblems, FP64": Route(products=False, fp64=False, precision="float64"),
    "eigenproblems, FP32": Route(products=False, fp64=False, precision="float32"),
    "products, FP32": Route(products=True, fp64=False, precision="float32"),
    "products, FP64": Route(products=True, fp64=True, precision="float32"),
}


@dataclass(frozen=True)
class Row:
    """One case by one route.

    Attributes:
        sigma: largest error of a singular value, which are at most 1.
        excess: of the squared residual over the least there is, as a share of it.
    """

    case: str
    shape: str
    route: str
    sigma: float
    excess: float
    kept: bool


def cases(model: Path | None, data: Path | None) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Names, Δ and X: random ones, with a gradient at all tokens or at some, and those of a model's layers."""
    for count, rows, columns in SHAPES:
        deltas, inputs = tokens(count, rows, seed=0), tokens(count, columns, seed=1)
        yield "falling", deltas, inputs
        some = torch.arange(count).unsqueeze(1) < 300
        yield "300 tokens with a gradient", deltas * some, inputs
        yield "gradients that point alike", deltas * 1e-3 + deltas[:1], inputs
    if model is not None and data is not None:
        loaded, tokenizer = load_model(model, device="cpu", dtype="float32"), load_tokenizer(model)
        samples = EncodedSamples(list(as_samples(data))[:SAMPLES], model=loaded, tokenizer=tokenizer)
        chosen = some_mlps(loaded)
        loaded.requires_grad_(requires_grad=False)
        found = gather_tokens(loaded, chosen, samples.loss_batches(range(len(samples))), Room())
        for target in chosen:
            own = found[target]
            yield f"layer {target.layer} {target.role}", torch.cat(own.deltas), torch.cat(own.inputs)


def measure(case: str, deltas: Tensor, inputs: Tensor) -> Iterator[Row]:
    """By every route that does not leave it to eigenproblems, as products do where tokens are few."""
    wide = [side.double() for side in (deltas, inputs)]
    exact = whiten_blocks(*wide, rank=min(deltas.shape[1], inputs.shape[1]), damping=DAMPING, backend="reference")
    whole = exact.left @ exact.right[0]
    least = float(exact.sigma[0, RANK:].square().sum())
    shape = f"{len(deltas)}, {deltas.shape[1]}x{inputs.shape[1]}"
    for name, route in ROUTES.items():
        with route.taken():
            dtype = getattr(torch, route.precision)
            if route.products and not whiten.suit_products([deltas], inputs, RANK, DAMPING, dtype):
                continue
            found = whiten_blocks(deltas, inputs, rank=RANK, damping=DAMPING, backend="gram", precision=route.precision)
        sigma = float((found.sigma[0] - exact.sigma[0, :RANK]).abs().max())
        residual = float((whole - found.left.double() @ found.right[0].double()).square().sum())
        known = torch.finfo(torch.float32).eps * max(deltas.shape[1], inputs.shape[1]) / DAMPING
        excess = residual / least - 1
        kept = excess <= EXCESS if route.fp64 or route.precision == "float64" else sigma <= known
        yield Row(case, shape, name, sigma, excess, kept)


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a model, whose tokens are whitened too.")] = None,
    data: Annotated[Path | None, typer.Option(help="Its samples.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write")] = None,
) -> None:
    print(f"{'case':28} {'T, m x n':16} {'route':20} {'σ error':>8} {'excess':>8}")
    rows = []
    for case in cases(model, data):
        for row in measure(*case):
            rows.append(row)
            verdict = "" if row.kept else "MISSED"
            print(
                f"{row.case:28} {row.shape:16} {row.route:20} {row.sigma:8.1e} {row.excess:8.1e}  {verdict}", flush=True
            )
    missed = sum(not row.kept for row in rows)
    figures = {"excess": EXCESS, "rank": RANK, "missed": missed, "rows": [asdict(row) for row in rows]}
    print(f"{missed} missed; written to {write_record('precision_whitening', figures, output)}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    typer.run(main)
