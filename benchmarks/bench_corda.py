"""CorDA's start of a model's adapters by peft and by lasertri: `python -m benchmarks.bench_corda MODEL SAMPLES`.

First how near they are to its definition, of every kind of layer in the middle of the model: the error of the product
that is taken out of the weight, relative to what an FP64 SVD and inverse of FP64 covariances give. Then the seconds of
every route, side by side in every round, of the processor, which a busy machine does not change, and of the clock. At
last the most memory over what the model takes. All routes run the same rows, one by one, and the head at one place.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.memory import MIB, peak
from benchmarks.record import machine_record, write_record
from lasertri import Sample, load_model, load_tokenizer
from lasertri.data.files import as_samples
from lasertri.integrations.peft import corda
from lasertri.language.encoding import Batch
from lasertri.language.samples import EncodedSamples
from lasertri.model.targets import Target, find_linear_layers
from lasertri.ops.corda import DAMPING

METHODS = ("ipm", "kpm")
SMALL = 256 * MIB


class Case(NamedTuple):
    """What every route starts from.

    Attributes:
        load: the model as it is stored, anew.
        modules: the names of the modules that get an adapter: peft's preprocessing does not know "all-linear".
    """

    load: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    samples: list[Sample]
    modules: list[str]
    rank: int

    def config(self, method: str) -> LoraConfig:
        return LoraConfig(
            target_modules=self.modules,
            r=self.rank,
            lora_alpha=self.rank,
            init_lora_weights="corda",
            corda_config=CordaConfig(corda_method=method),
        )

    def rows(self, model: PreTrainedModel) -> list[Batch]:
        return EncodedSamples(self.samples, model=model, tokenizer=self.tokenizer, batch_size=1).gold_batches()


def pefts(case: Case, model: PreTrainedModel, method: str) -> PeftModel:
    """As its documentation says."""
    config, rows = case.config(method), case.rows(model)

    def run() -> None:
        for row in rows:
            row.log_probs(model)

    preprocess_corda(model, config, run_model=run)
    return get_peft_model(model, config)


def ours(case: Case, model: PreTrainedModel, method: str, budget: int | None = None) -> PeftModel:
    """In its place."""
    return corda(model, case.config(method), case.samples, tokenizer=case.tokenizer, memory_budget=budget)


ROUTES: dict[str, Callable[[Case, PreTrainedModel, str], PeftModel]] = {
    "peft": pefts,
    "lasertri": ours,
    "lasertri, 256 MiB": lambda case, model, method: ours(case, model, method, SMALL),
}


@torch.no_grad()
def definition(case: Case) -> dict[Target, tuple[Tensor, Tensor, Tensor]]:
    """Of every kind of layer, in the middle of the model, U, S and Vᵀ (C + λ)⁻¹ in FP64."""
    model = case.load().eval()
    middle = model.config.num_hidden_layers // 2
    targets, covariances = [target for target in find_linear_layers(model) if target.layer == middle], {}
    for target in targets:

        def keep(_: object, given: tuple[Tensor, ...], target: Target = target) -> None:
            x = given[0].flatten(0, -2).double()
            covariances[target] = covariances.get(target, 0) + (x.mT @ x) / x.max() ** 2

        model.get_submodule(target.module).register_forward_pre_hook(keep)
    rows = case.rows(model)
    for row in rows:
        row.log_probs(model)
    found = {}
    for target, total in covariances.items():
        damped = total / len(rows)
        damped += DAMPING * damped.diagonal().mean() * torch.eye(len(damped))
        u, sigma, vh = torch.linalg.svd(target.view(target.parameter(model)).double() @ damped, full_matrices=False)
        found[target] = u, sigma, torch.linalg.solve(damped, vh, left=False)
    return found


@torch.no_grad()
def errors(adapted: PeftModel, case: Case, method: str, defined: dict[Target, tuple[Tensor, Tensor, Tensor]]) -> dict:
    """By kind of layer, the relative error of what its adapter adds."""
    found = {}
    for target, (u, sigma, across) in defined.items():
        part = slice(case.rank) if method == "ipm" else slice(len(sigma) - case.rank, None)
        product = (u[:, part] * sigma[part]) @ across[part]
        layer = adapted.base_model.model.get_submodule(target.module)
        found[target.role] = float((layer.get_delta_weight("default") - product).norm() / product.norm())
    return found


class Taken(NamedTuple):
    """What one start took: seconds of the processor and of the clock, and bytes over those before."""

    processor: float
    seconds: float
    peak: int


def measured(start: Callable[[], PeftModel]) -> tuple[PeftModel, Taken]:
    """The adapted model, and what that took."""
    found: list[PeftModel] = []
    processor, seconds = time.process_time(), time.perf_counter()
    most = peak(lambda: found.append(start()))
    return found[0], Taken(time.process_time() - processor, time.perf_counter() - seconds, most)


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a causal language model.")],
    data: Annotated[Path, typer.Argument(help="File of samples.")],
    rank: Annotated[int, typer.Option(help="Of the adapters.")] = 16,
    count: Annotated[int, typer.Option(help="Samples.")] = 100,
    rounds: Annotated[int, typer.Option(help="Each route runs once in each.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Record, by default in benchmarks/results.")] = None,
) -> None:
    """Check, measure and record."""
    torch.set_num_threads(threads)
    machine, rows = machine_record("peft"), []

    def load() -> PreTrainedModel:
        return load_model(model, dtype="float32", device="cpu")

    modules = sorted({target.module.rpartition(".")[2] for target in find_linear_layers(load())})
    case = Case(load, load_tokenizer(model), as_samples(data)[:count], modules, rank)
    defined = definition(case)
    for method in METHODS:
        taken: dict[str, list[Taken]] = {route: [] for route in ROUTES}
        off = {}
        for _ in range(rounds):
            for route, start in ROUTES.items():
                adapted, found = measured(functools.partial(start, case, load(), method))
                taken[route].append(found)
                off[route] = errors(adapted, case, method, defined)
                del adapted
        for route in ROUTES:
            times, peaks = (
                statistics.median(own[i] / theirs[i] for own, theirs in zip(taken[route], taken["peft"], strict=True))
                for i in (0, 2)
            )
            rows.append(
                {
                    "method": method,
                    "route": route,
                    "errors": off[route],
                    "processor seconds": [own.processor for own in taken[route]],
                    "seconds": [own.seconds for own in taken[route]],
                    "peak MiB": [own.peak / MIB for own in taken[route]],
                    "seconds beside peft": times,
                    "peak beside peft": peaks,
                }
            )
            typer.echo(
                f"{method} {route:18} off by {min(off[route].values()):.0e} to {max(off[route].values()):.0e}, "
                f"{taken[route][-1].processor:.1f} s, {times:.2f} of peft's, {rows[-1]['peak MiB'][-1]:.0f} MiB, "
                f"{peaks:.2f} of peft's"
            )
    about = {"model": model.name, "data": data.name, "rank": rank, "samples": len(case.samples), "threads": threads}
    typer.echo(f"written to {write_record('bench_corda', about | {'rows': rows}, out, machine)}")


if __name__ == "__main__":
    typer.run(main)
