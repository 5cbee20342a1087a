"""What factored layers save beside dense ones: latency of one layer, and latency, memory and disk of a whole model.

`python benchmarks/bench_factored.py`, on the CPU. Weights are random: neither size nor time depends on their values,
and how a truncated model answers is another question. Each is checked against the dense truncation before it is timed,
round by round beside the dense layer or model. One layer's weight may stay in the caches; a whole model's does not.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from record import machine_record, write_record
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lasertri import block_svd, save
from lasertri.factored.exchange import exchange, factored, linear_at
from lasertri.factored.layer import FactoredLinear
from lasertri.model.targets import find_targets
from lasertri.ops.blocks import retained_rank
from lasertri.ops.pairs import truncated_factors

SHAPES = ((4096, 1024), (1024, 4096))  # rows, columns
RATIOS = (0.6, 0.4, 0.2, 0.1, 0.05, 0.01)
BLOCKS = (1, 8)
TOKENS = (1, 64)
ROUNDS, SECONDS = 7, 0.05  # of every route, and how long one round takes at least
DTYPES = {"float32": 1e-5, "bfloat16": 2e-2}  # and how far outputs may be from the dense truncation's, relatively


def main(
    layers: Annotated[int, typer.Option(help="Layers of the random Llama.")] = 4,
    width: Annotated[int, typer.Option(help="Its hidden size; the MLP is four times as wide.")] = 1024,
    dtype: Annotated[str, typer.Option(help="Of the weights, float32 or bfloat16.")] = "float32",
) -> None:
    """Check, measure, print and record."""
    machine, figures = machine_record(), {}
    with torch.inference_mode():
        figures["layers"] = [row for shape in SHAPES for row in layer_rows(*shape, dtype)]
        figures["models"] = model_rows(layers, width, dtype)
    typer.echo(f"written to {write_record('bench_factored', {'dtype': dtype, **figures}, machine=machine)}")


def layer_rows(rows: int, columns: int, dtype: str) -> list[dict[str, object]]:
    torch.manual_seed(0)
    dense = nn.Linear(columns, rows, dtype=getattr(torch, dtype))
    typer.echo(f"layer {rows}×{columns}, {dtype}: seconds, and median over that of the dense layer beside it")
    found = []
    for blocks in BLOCKS:
        factors = block_svd(dense.weight, blocks=blocks)
        for ratio in RATIOS:
            ranks = [int(length * ratio) for length in factors.lengths]
            layer = factored(dense, truncated_factors(dense.weight, factors, ranks), dense.weight)
            if layer is None:
                continue
            row = {"shape": f"{rows}x{columns}", "blocks": blocks, "ratio": ratio, "rank": ranks[0]}
            row["bytes"] = size(layer) / size(dense)
            for tokens in TOKENS:
                x = torch.randn(tokens, columns, dtype=dense.weight.dtype)
                truncated = nn.functional.linear(x.double(), layer.product(), dense.bias.double())
                check(layer(x), truncated, DTYPES[dtype])
                row[f"tokens {tokens}"] = beside(lambda: layer(x), lambda: dense(x))  # noqa: B023 - called at once
            found.append(row)
            echo(f"K = {blocks}, ρ = {ratio:<4} rank {ranks[0]:4}", row)
    return found


def model_rows(layers: int, width: int, dtype: str) -> list[dict[str, object]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        dtype=dtype,
    )
    dense = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    typer.echo(f"Llama of {layers} layers, width {width}, {dtype}: MLP matrices factored, one block each")
    found = []
    for ratio in RATIOS:
        model = copy.deepcopy(dense)
        smaller = {path: layer for path, layer in factored_mlp(model, ratio) if layer is not None}
        exchange(model, smaller)
        if not smaller:
            continue
        row: dict[str, object] = {"ratio": ratio, "factored": len(smaller), "bytes": size(model) / size(dense)}
        row["disk"] = disk(model) / disk(dense)
        truncated = multiplied(model)
        for tokens in TOKENS:
            ids = torch.randint(1000, (1, tokens))
            check(model(ids).logits, truncated(ids).logits, DTYPES[dtype])
            row[f"tokens {tokens}"] = beside(lambda: model(ids), lambda: dense(ids))  # noqa: B023 - called at once
        found.append(row)
        echo(f"ρ = {ratio:<4} disk {row['disk']:.2f}", row)
    return found


def factored_mlp(model: LlamaForCausalLM, ratio: float) -> Iterator[tuple[str, FactoredLinear | None]]:
    """The MLP matrices at this ratio, as `adapt --save factored` stores an edit."""
    for target in find_targets(model):
        weight, linear = target.view(target.parameter(model)), linear_at(model, target.module)
        ranks = [retained_rank(min(weight.shape), ratio)]
        yield target.module, factored(linear, truncated_factors(weight, block_svd(weight), ranks), weight)


def multiplied(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model with dense layers again."""
    plain = copy.deepcopy(model)
    for path, layer in list(plain.named_modules()):
        if isinstance(layer, FactoredLinear):
            dense = nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=layer.weight.dtype)
            dense.weight.copy_(layer.product())
            plain.set_submodule(path, dense)
    return plain


def check(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not error <= tolerance:
        typer.echo(f"expected outputs within {tolerance:.0e} of the dense truncation's, got {error:.1e}", err=True)
        raise typer.Exit(1)


def beside(route: Callable[[], object], baseline: Callable[[], object]) -> dict[str, float]:
    """Best seconds of both, and the median ratio of a round to the baseline's beside it."""
    calls = [max(1, int(SECONDS / seconds(work, 3))) for work in (route, baseline)]  # also warms up
    rounds = [(seconds(route, calls[0]), seconds(baseline, calls[1])) for _ in range(ROUNDS)]
    mine, other = zip(*rounds, strict=True)
    return {
        "seconds": min(mine),
        "dense_seconds": min(other),
        "relative": statistics.median(a / b for a, b in rounds),
    }


def seconds(work: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def size(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def disk(model: LlamaForCausalLM) -> int:
    """Bytes of the saved weights."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "out")
        return sum(path.stat().st_size for path in (Path(folder) / "out").glob("model*"))


def echo(name: str, row: dict[str, object]) -> None:
    times = ", ".join(f"{t} tokens {row[f'tokens {t}']['relative']:.2f}" for t in TOKENS)
    milliseconds = ", ".join(
        f"{1e3 * row[f'tokens {t}']['seconds']:.2f} (dense {1e3 * row[f'tokens {t}']['dense_seconds']:.2f}) ms"
        for t in TOKENS
    )
    typer.echo(f"  {name}: bytes {row['bytes']:.2f}, {times}; {milliseconds}")


if __name__ == "__main__":
    typer.run(main)
