"""A trained GPT-J of 12 layers on which truncation has a real effect: `python -m benchmarks.adapt.deep_recall`.

It learns the demo's noisy recall (`lasertri.demo.recall`) at width 256, grown: two layers learn the task, ten that
leave the hidden state alone go around them, and all twelve train on. (Twelve layers from scratch had hardly begun to
recall when two, in less time, had learnt it.) Takes minutes, once: a model that is there is used again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from transformers import GPTJForCausalLM

from lasertri.demo.train import configuration, fit, tokenizer

CACHE = Path(__file__).parents[1] / "cache"
OUTPUT = CACHE / "recall-12x256"
LAYERS, WIDTH = 12, 256
PLACES = (3, 8)  # where the two layers trained first go
INITIALIZER_RANGE = 0.05
SHALLOW = {"steps": 300, "batch": 32, "peak_learning_rate": 1e-3}
# Adam's first steps move all the zeros of the new layers at once: at 3e-4 that undoes what was learnt.
DEEP = {"steps": 80, "batch": 16, "peak_learning_rate": 3e-5}
RECORD = "training.json"


def deep_recall(output: Path = OUTPUT, *, seed: int = 0, layers: int = LAYERS, width: int = WIDTH) -> Path:
    """The folder of the trained model, which is trained first where there is none."""
    if (output / RECORD).exists():
        return output
    start = time.perf_counter()
    torch.manual_seed(seed)
    shallow = fit(GPTJForCausalLM(configuration(len(PLACES), width, INITIALIZER_RANGE)), seed, **SHALLOW)
    model = fit(deepened(shallow, layers, PLACES), seed + 1, **DEEP)
    model.save_pretrained(output)
    tokenizer().save_pretrained(output)
    record = {
        "layers": layers,
        "width": width,
        "seed": seed,
        "shallow": SHALLOW,
        "deep": DEEP,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    (output / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")  # last: the model is whole
    return output


def deepened(shallow: GPTJForCausalLM, layers: int, places: Sequence[int]) -> GPTJForCausalLM:
    """The same function in more layers: the trained ones at `places`, new ones that add nothing yet elsewhere."""
    model = GPTJForCausalLM(configuration(layers, shallow.config.n_embd, INITIALIZER_RANGE))
    for layer in model.transformer.h:
        nn.init.zeros_(layer.attn.out_proj.weight)
        nn.init.zeros_(layer.mlp.fc_out.weight)
        nn.init.zeros_(layer.mlp.fc_out.bias)
    trained = shallow.transformer.h
    for place, layer in zip(places, trained, strict=True):
        model.transformer.h[place].load_state_dict(layer.state_dict())
    rest = {name: value for name, value in shallow.state_dict().items() if not name.startswith("transformer.h.")}
    model.load_state_dict(rest, strict=False)
    return model.train()


def main(
    output: Annotated[Path, typer.Option(help="Folder of the checkpoint.")] = OUTPUT,
    seed: Annotated[int, typer.Option(help="Decides initial weights and training data.")] = 0,
) -> None:
    """Train the model and save it with its tokenizer as a Hugging Face folder, unless it is there."""
    typer.echo(deep_recall(output, seed=seed))


if __name__ == "__main__":
    typer.run(main)
