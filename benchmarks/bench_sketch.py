"""What a whitened step loses by few tokens: `python benchmarks/bench_sketch.py --model FOLDER --data FOLDER`.

At one length ‖(B+λ)^¼ D (C+λ)^¼‖_F, of the norm in which the whitened gradient is the steepest descent, the predicted
decrease ⟨G, D⟩ of a step made from compressed tokens stands beside that of the step made from all of them, at the same
rank. Tokens come batch by batch and are compressed as `gather_tokens` does: beyond twice so many rows as are kept.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from record import machine_record, write_record
from torch import Tensor
from tqdm import tqdm

from benchmarks.edits.tasks import TASKS
from lasertri import load_model, load_tokenizer
from lasertri.data.split import split_samples
from lasertri.language.samples import EncodedSamples
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_linear_layers
from lasertri.ops import whiten_blocks
from lasertri.search.directions import DAMPING, RANKS
from lasertri.search.tokens import Room, Tokens, gather_tokens

Root = tuple[Tensor, Tensor, float]


def root(rows: Tensor) -> Root:
    """(M+λ)^½ of M = RᵀR for rows `[T, s]`: √λ and, of M's own space, orthonormal `[s, p]` and what they have more."""
    rows = rows.double()
    short = rows.mT @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.mT
    squares, vectors = torch.linalg.eigh(short)
    kept = squares > 1e-12 * squares[-1]
    squares, vectors = squares[kept], vectors[:, kept]
    basis = vectors if rows.shape[1] <= rows.shape[0] else rows.mT @ vectors / squares.sqrt()
    damping = DAMPING * float(squares.sum()) / rows.shape[1]
    return basis, (squares + damping).sqrt() - damping**0.5, damping**0.5


def times(root: Root, matrix: Tensor) -> Tensor:
    """(M+λ)^½ A of `[s, r]`."""
    basis, more, least = root
    return least * matrix + basis @ (more.unsqueeze(-1) * (basis.mT @ matrix))


def descent(inputs: Tensor, deltas: Tensor, sides: tuple[Root, Root], left: Tensor, right: Tensor) -> float:
    """⟨G, D⟩ over ‖(B+λ)^¼ D (C+λ)^¼‖_F of D = left right."""
    left, right = left.double(), right.double()
    decrease = ((deltas.double() @ left) * (inputs.double() @ right.mT)).sum()
    square = ((left.mT @ times(sides[0], left)) * (right @ times(sides[1], right.mT)).mT).sum()
    return float(decrease / square.sqrt())


def compressed(own: Tokens, most: int) -> Tokens:
    """As `gather_tokens` keeps them."""
    kept = Tokens()
    for inputs, deltas in zip(own.inputs, own.deltas, strict=True):
        kept += Tokens([inputs], [deltas])
        if len(kept) > 2 * most:
            kept.compress(most)
    return kept


def step(inputs: Tensor, deltas: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    found = whiten_blocks(deltas, inputs, rank=min(rank, deltas.shape[1], inputs.shape[1]), damping=DAMPING)
    return found.left, found.right[0]


def main(
    model: Annotated[Path, typer.Option(help="Folder of a language model.")],
    data: Annotated[Path, typer.Option(help="Folder of the tasks, see benchmarks/edits/tasks.py.")],
    task: Annotated[str, typer.Option(help=f"Among {', '.join(TASKS)}.")] = "counterfact",
    rows: Annotated[str, typer.Option(help="Tokens kept, at most twice as many between.")] = "64,128,256,512",
    samples: Annotated[int, typer.Option(help="That the gradient is of.")] = 100,
    rank: Annotated[int, typer.Option(help="Of the step.")] = RANKS["whitened"],
    stride: Annotated[int, typer.Option(help="Every how manieth layer is measured.")] = 6,
    batch_size: Annotated[int, typer.Option(help="Rows run at once.")] = 8,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    output: Annotated[Path | None, typer.Option(help="File of the record.")] = None,
) -> None:
    """Measure, print and record."""
    machine = machine_record()
    torch.set_num_threads(threads)
    loaded, tokenizer = load_model(model), load_tokenizer(model)
    chosen = split_samples(TASKS[task].samples(data), calibration=samples, seed=0).calibration
    encoded = EncodedSamples(
        chosen, model=loaded, tokenizer=tokenizer, delimiter=TASKS[task].delimiter, batch_size=batch_size
    )
    targets = [target for target in find_linear_layers(loaded) if target.layer % stride == 0]
    with preserved(loaded):
        tokens = gather_tokens(loaded, targets, encoded.loss_batches(range(len(encoded))), Room())
    counts = list(map(int, rows.split(",")))
    ratios: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    kept: dict[int, list[int]] = defaultdict(list)
    for target in tqdm(targets, desc="layers"):
        own = tokens.pop(target)
        if not len(own):
            continue
        inputs, deltas = torch.cat(own.inputs), torch.cat(own.deltas)
        sides = root(deltas), root(inputs)
        exact = descent(inputs, deltas, sides, *step(inputs, deltas, rank))
        for count in counts:
            few = compressed(own, count)
            made = step(torch.cat(few.inputs), torch.cat(few.deltas), rank)
            ratios[target.role][count].append(descent(inputs, deltas, sides, *made) / exact)
            kept[count].append(len(few))
        kept[0].append(len(own))
    figures = {
        role: {str(count): {"mean": sum(found) / len(found), "least": min(found)} for count, found in by_count.items()}
        for role, by_count in ratios.items()
    }
    totals = {count: [ratio for by_count in ratios.values() for ratio in by_count[count]] for count in counts}
    figures["all"] = {
        str(count): {"mean": sum(found) / len(found), "least": min(found)} for count, found in totals.items()
    }
    typer.echo(f"{'role':24}" + "".join(f"{count:>16}" for count in counts) + "   mean (least)")
    for role, by_row in figures.items():
        typer.echo(f"{role:24}" + "".join(f"{f['mean']:8.4f} ({f['least']:.3f})" for f in by_row.values()))
    path = write_record(
        "bench_sketch",
        {
            "model": model.name,
            "task": task,
            "samples": len(chosen),
            "rank": rank,
            "damping": DAMPING,
            "layers": sorted({target.layer for target in targets}),
            "tokens": max(kept[0]),
            "rows_kept": {str(count): [min(kept[count]), max(kept[count])] for count in counts},
            "ratios": figures,
        },
        output,
        machine,
    )
    typer.echo(f"written to {path}")


if __name__ == "__main__":
    typer.run(main)
