"""What an edit gives on real tasks, beside other ways to use the same samples: `python -m benchmarks.bench_edits`.

Every method gets the same model, calibration and held-out samples (`split_samples`), and is measured alike. Seconds are
of selection, training and the held-out measurements; peak memory is over what the loaded model takes. A row is appended
for every model, task, seed, method and dtype; those that the record has are left out: a run goes on where it stopped.
Needs peft.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.edits.case import Case
from benchmarks.edits.lora import lora, lora_ga
from benchmarks.edits.product import edit
from benchmarks.edits.prompt import few_shot
from benchmarks.edits.rows import Row, Rows
from benchmarks.edits.tasks import TASKS
from benchmarks.memory import peak, return_freed
from benchmarks.record import RESULTS, machine_record
from lasertri import load_model, load_tokenizer
from lasertri.data.split import split_samples

METHODS: dict[str, Callable[[Case], Row]] = {
    "step": edit(edit="step"),
    "step-merged": edit(edit="step", merge=True),  # in the dtype that the model is loaded in
    "step-all": edit(edit="step", targets="."),  # not of the MLPs alone, but of every linear layer
    "step-all-merged": edit(edit="step", targets=".", merge=True),
    "shrink": edit(edit="shrink"),
    "truncate": edit(edit="truncate"),
    "truncate-16": edit(edit="truncate", scoring_blocks=16),  # ranked in more blocks, which are cheaper to factor
    "truncate-32": edit(edit="truncate", scoring_blocks=32),
    "lora": lora,
    "lora-ga": lora_ga,
    "few-shot": few_shot,
}
CALIBRATION, HELD_OUT = 100, 400


def main(
    model: Annotated[Path, typer.Option(help="Folder of a language model.")],
    data: Annotated[Path, typer.Option(help="Folder of the tasks, see benchmarks/edits/tasks.py.")],
    tasks: Annotated[str, typer.Option(help="Which, in this order.")] = ",".join(TASKS),
    seeds: Annotated[str, typer.Option(help="Of the split, the folds and the training.")] = "0,1",
    methods: Annotated[str, typer.Option(help="Which, in this order.")] = ",".join(METHODS),
    dtype: Annotated[str, typer.Option(help="The model is loaded in: float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Annotated[Path, typer.Option(help="Record, one JSON row a line.")] = RESULTS / "bench_edits.jsonl",
) -> None:
    """Measure and record what the record lacks, seed by seed."""
    named = _known("--tasks", tasks, TASKS), _known("--methods", methods, METHODS)
    torch.set_num_threads(threads)
    return_freed()
    loaded, tokenizer, rows = load_model(model, dtype=dtype), load_tokenizer(model), Rows(out)
    for seed in map(int, seeds.split(",")):
        for name in named[0]:
            samples = TASKS[name].samples(data)
            split = split_samples(samples, calibration=CALIBRATION, held_out_limit=HELD_OUT, seed=seed)
            case = Case(loaded, tokenizer, TASKS[name], split, seed)
            for method in named[1]:
                key = {"model": model.name, "task": name, "seed": seed, "method": method, "dtype": dtype}
                if key not in rows:
                    rows.append(key | measured(case, method))
                typer.echo(line(rows[key]))


def measured(case: Case, method: str) -> dict[str, object]:
    """What a method gives, beside the baseline, with the machine as it was in the beginning."""
    machine = machine_record("peft")
    before = case.baseline.to_dict()
    found: dict[str, object] = {}
    used = peak(lambda: found.update(METHODS[method](case)))
    sizes = {"calibration": len(case.calibration), "held_out_samples": len(case.held_out)}
    return sizes | {"baseline": before} | found | {"peak_memory": used, "machine": machine}


def line(row: Row) -> str:
    """A row's figures: before, after and, where that was looked for, the best in hindsight."""
    start = f"{row['task']:20} seed {row['seed']} {row['method']:9}"
    if "skipped" in row:
        return f"{start} {row['skipped']}"
    parts = [("", row["baseline"]), (f" -> {_brief(row['chosen'])}", row["held_out"])]
    if "hindsight" in row:
        parts.append((f"; best {_brief(row['hindsight'])}", row["hindsight"]["held_out"]))
    forwards = row["forward_equivalents"]
    cost = f"{sum(row['seconds'].values()):.0f} s" + ("" if forwards is None else f", {forwards:.1f} forwards")
    return start + "".join(f"{name} {_figures(figures)}" for name, figures in parts) + f"; {cost}"


def _brief(options: Row) -> str:
    return " ".join(f"{name} {value}" for name, value in options.items() if name != "held_out")


def _figures(figures: Row) -> str:
    choice = figures["choice_log_loss"]
    return f"{figures['accuracy']:.1%}, {figures['log_loss'] if choice is None else choice:.3f}"


def _known(option: str, names: str, known: Row) -> list[str]:
    chosen = names.split(",")
    if unknown := set(chosen) - set(known):
        raise typer.BadParameter(f"expected names among {list(known)}, got {sorted(unknown)}", param_hint=option)
    return chosen


if __name__ == "__main__":
    typer.run(main)
