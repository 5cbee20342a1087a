"""Where scoring's memory goes, term by term: `python benchmarks/bench_memory.py`.

The promise is: the weights, one micro-batch's activations, one gradient, the FP64 workspace of one matrix and the
factors that fit the budget; never a second model. Each peak is measured over what was resident before, and stands
beside a plain backward pass that keeps all gradients.
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from memory import MIB, peak, return_freed
from record import write_record
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lasertri import Sample
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target, find_targets
from lasertri.search.scoring import score_targets
from lasertri.search.settings import BLOCK_COUNTS


def main(
    layers: Annotated[int, typer.Option(help="Layers of the random Llama.")] = 4,
    width: Annotated[int, typer.Option(help="Its hidden size; the MLP is four times as wide.")] = 768,
    budget: Annotated[int, typer.Option(help="Memory budget in MiB.")] = 300,
) -> None:
    """Measure, print and record."""
    return_freed()
    model, samples = make_model(layers, width), make_samples()
    targets = find_targets(model)
    encoded = EncodedSamples(samples, model=model, tokenizer=make_tokenizer(), batch_size=8)
    factors = FactorStore(model, targets, BLOCK_COUNTS, budget=budget * MIB)
    weights = sum(p.nbytes for p in model.parameters())
    one_gradient = max(target.parameter(model).nbytes for target in targets)

    def scoring() -> None:
        with preserved(model):
            score_targets(model, targets, encoded, block_counts=BLOCK_COUNTS, factors=factors)

    terms = {
        "weights": weights,
        "activations of one micro-batch, and one gradient": peak(lambda: backward(model, targets, encoded, keep=False)),
        "one gradient": one_gradient,
        "FP64 workspace of one matrix, bound": factors.workspace,
        "scoring, over the weights": peak(scoring),
        "kept factors": factors.kept_bytes,
        "plain backward pass, over the weights": peak(lambda: backward(model, targets, encoded, keep=True)),
        "gradients of all targets": sum(target.parameter(model).nbytes for target in targets),
    }
    for name, size in terms.items():
        typer.echo(f"{name:50} {size / MIB:8.0f} MiB")
    parts = ("activations of one micro-batch, and one gradient", "FP64 workspace of one matrix, bound", "kept factors")
    allowed = sum(terms[name] for name in parts)
    typer.echo(f"{'promised for scoring, over the weights':50} {allowed / MIB:8.0f} MiB")
    write_record("bench_memory", {"MiB": {name: round(size / MIB, 1) for name, size in terms.items()}})
    if terms["scoring, over the weights"] > 1.05 * allowed:
        typer.echo("scoring takes more than its terms", err=True)
        raise typer.Exit(1)


def backward(model: LlamaForCausalLM, targets: list[Target], samples: EncodedSamples, *, keep: bool) -> None:
    """One backward pass over the first micro-batch; gradients of the targets are freed as they come, or kept."""
    with preserved(model):
        handles = []
        for target in targets:
            parameter = target.parameter(model).requires_grad_(True)
            if not keep:
                handles.append(parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)))
        (-samples.gold_batches()[-1].read(model)[0].sum()).backward()
        for handle in handles:
            handle.remove()


def make_model(layers: int, width: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
    )
    return LlamaForCausalLM(config).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({str(i): i for i in range(1000)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0")


def make_samples() -> list[Sample]:
    words = torch.randint(1000, (16, 64), generator=torch.Generator().manual_seed(0)).tolist()
    return [Sample(" ".join(map(str, row[:-1])), str(row[-1])) for row in words]


if __name__ == "__main__":
    typer.run(main)
