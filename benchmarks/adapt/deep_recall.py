"""A trained GPT-J of 12 layers on which truncation has a real effect: `python -m benchmarks.adapt.deep_recall`.

It learns the demo's noisy recall (`lasertri.demo.recall`) like the demo's model, at 12 layers of width 256. Takes
about ten minutes on two cores, once: a model that is there is used again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import GPTJForCausalLM

from lasertri.demo.train import configuration, fit, tokenizer

CACHE = Path(__file__).parents[1] / "cache"
OUTPUT = CACHE / "recall-12x256"
LAYERS, WIDTH = 12, 256
STEPS, BATCH, PEAK_LEARNING_RATE = 400, 16, 1e-3
INITIALIZER_RANGE = 0.05
RECORD = "training.json"


def deep_recall(
    output: Path = OUTPUT,
    *,
    layers: int = LAYERS,
    width: int = WIDTH,
    steps: int = STEPS,
    seed: int = 0,
) -> Path:
    """The folder of the trained model, which is trained first where there is none."""
    if (output / RECORD).exists():
        return output
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = GPTJForCausalLM(configuration(layers, width, INITIALIZER_RANGE))
    fit(model, seed, steps=steps, batch=BATCH, peak_learning_rate=PEAK_LEARNING_RATE)
    model.save_pretrained(output)
    tokenizer().save_pretrained(output)
    record = {
        "layers": layers,
        "width": width,
        "steps": steps,
        "batch": BATCH,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    (output / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")  # last: it marks a whole model
    return output


def main(
    output: Annotated[Path, typer.Option(help="Folder of the checkpoint.")] = OUTPUT,
    steps: Annotated[int, typer.Option(help="Training steps.")] = STEPS,
    seed: Annotated[int, typer.Option(help="Decides initial weights and training data.")] = 0,
) -> None:
    """Train the model and save it with its tokenizer as a Hugging Face folder, unless it is there."""
    typer.echo(deep_recall(output, steps=steps, seed=seed))


if __name__ == "__main__":
    typer.run(main)
