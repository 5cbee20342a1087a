"""How well does a score pick the targets? `python benchmarks/bench_selection.py`.

The answer is known where every target can be measured: the demo's two-layer model, trained from several seeds as GPT-J,
GPT-2 and Llama. All linear layers are targets: four to six MLP matrices would leave little to pick. About a minute of
training a model on one core; trained models stay in benchmarks/cache/selection.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from record import machine_record, write_record
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lasertri.data.files import as_samples
from lasertri.data.sample import Sample
from lasertri.demo.recall import samples
from lasertri.demo.train import configuration, fit, tokenizer
from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.model.loading import load_model, load_tokenizer
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_targets
from lasertri.ops import BlockScores
from lasertri.search.forecast import forecast
from lasertri.search.scoring import score_targets
from lasertri.search.settings import BLOCK_COUNTS, Settings
from lasertri.search.strategies import DEFAULT, STRATEGIES, distinct
from lasertri.search.trial import Trial
from lasertri.search.trials import run_trials

CACHE = Path(__file__).parent / "cache" / "selection"
SAMPLES = 100
RATIOS = STRATEGIES[DEFAULT].ratios
DRAWS = 10_000
ANY = "any"  # a target's best score over all K
FISHER = "fisher, grid"  # the default

Figures = dict[str, float]
Terms = Callable[[Tensor, Tensor], Tensor]
# what is summed over the tail, and the ratios retained before it; of several the best tail counts
SCORES: dict[str, tuple[Terms, tuple[float, ...]]] = {
    "taylor, grid": (lambda sigma, grad: sigma * grad, RATIOS),
    "paper, 20 %": (lambda sigma, grad: grad.clamp(min=0), (0.8,)),
    "paper, 50 %": (lambda sigma, grad: grad.clamp(min=0), (0.5,)),
    "paper, 100 %": (lambda sigma, grad: grad.clamp(min=0), (0.0,)),  # on the grid too: a longer tail only adds
    "literal, 100 %": (lambda sigma, grad: (-grad).clamp(min=0), (0.0,)),  # the sign as the summary prints it
    "clamped, 20 %": (lambda sigma, grad: (sigma * grad).clamp(min=0), (0.8,)),
    "clamped, 50 %": (lambda sigma, grad: (sigma * grad).clamp(min=0), (0.5,)),
    "clamped, 100 %": (lambda sigma, grad: (sigma * grad).clamp(min=0), (0.0,)),
}
FIGURES = ("place", "hit@1", "hit@5", "regret@1", "regret@5", "spearman")


class _Llama(LlamaForCausalLM):
    """Under the name by which the demo's loss reaches the layers."""

    transformer = property(lambda self: self.model)


def untrained(architecture: str) -> PreTrainedModel:
    """A model of the demo's size, from torch's random state."""
    demo = configuration()
    shared = {"vocab_size": demo.vocab_size, "initializer_range": demo.initializer_range}
    shared |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": demo.pad_token_id}
    if architecture == "gptj":
        return GPTJForCausalLM(demo)
    if architecture == "gpt2":
        size = {name: getattr(demo, name) for name in ("n_positions", "n_embd", "n_layer", "n_head")}
        no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return GPT2LMHeadModel(GPT2Config(**size, **no_dropout, **shared, tie_word_embeddings=False))
    if architecture == "llama":
        return _Llama(
            LlamaConfig(
                hidden_size=demo.n_embd,
                intermediate_size=176,  # three matrices as large as the others' two
                num_hidden_layers=demo.n_layer,
                num_attention_heads=demo.n_head,
                max_position_embeddings=demo.n_positions,
                tie_word_embeddings=False,
                **shared,
            )
        )
    raise typer.BadParameter(f"expected gptj, gpt2 or llama, got {architecture!r}")


def trained(architecture: str, seed: int) -> Path:
    """The folder of a trained model."""
    folder = CACHE / f"{architecture}-{seed}"
    if not (folder / "tokenizer.json").exists():
        torch.manual_seed(seed)
        fit(untrained(architecture), seed).save_pretrained(folder)
        tokenizer().save_pretrained(folder)  # last: where it is, the model is whole
    return folder


def observed(folder: Path, chosen: list[Sample]) -> tuple[dict[str, object], dict[str, dict[str, Figures]]]:
    """One model: what was measured, and every score's figures at every K."""
    model = load_model(folder, device="cpu")
    encoded = EncodedSamples(chosen, model=model, tokenizer=load_tokenizer(folder))
    targets = find_targets(model, ".")
    factors = FactorStore(model, targets, BLOCK_COUNTS, budget=4 << 30)
    candidates = distinct([Candidate(target, k, ratio) for target in targets for k in BLOCK_COUNTS for ratio in RATIOS])
    with preserved(model):
        scores = score_targets(model, targets, encoded, block_counts=BLOCK_COUNTS, factors=factors)
        grid = [Candidate(target, k, ratio) for k in BLOCK_COUNTS for target in targets for ratio in RATIOS]
        foretold = forecast(model, grid, encoded, factors).numpy().reshape(len(BLOCK_COUNTS), len(targets), -1)
        baseline, trials = run_trials(model, candidates, encoded, factors, Settings(race=False))
    mine = [[trial for trial in trials if trial.candidate.target == target] for target in targets]
    found = Measured(
        quality=[max(map(quality, those)) for those in mine],
        decrease=np.array([baseline.log_loss - min(t.measurement.log_loss for t in those) for those in mine]),
        baseline=baseline.accuracy,
    )
    figures: dict[str, dict[str, Figures]] = {}
    for name in (FISHER, *SCORES):
        values = [
            foretold[i].max(axis=1) if name == FISHER else np.array([value(scores[t, k], name) for t in targets])
            for i, k in enumerate(BLOCK_COUNTS)
        ]
        figures[name] = {str(k): found.figures(column) for k, column in zip(BLOCK_COUNTS, values, strict=True)}
        figures[name][ANY] = found.figures(np.max(values, axis=0))
    figures["random"] = {ANY: found.by_chance()}
    record = {
        "model": folder.name,
        "targets": len(targets),
        "trials": len(trials),
        "baseline": baseline.to_dict(),
        "best": max(trials, key=quality).to_dict(),
        "place_of_best_target": {n: {k: f["place"] for k, f in by_k.items()} for n, by_k in figures.items()},
    }
    return record, figures


@dataclass(frozen=True)
class Measured:
    """What exhaustive measurement gave for every target.

    Attributes:
        quality: of its best candidate, accuracy before log loss.
        decrease: the most of the log loss that one of its candidates takes away.
        baseline: accuracy of the unedited model, which stands where no candidate reaches it.
    """

    quality: list[tuple[float, float]]
    decrease: np.ndarray
    baseline: float

    def figures(self, scores: np.ndarray) -> Figures:
        """How a ranking by these scores does."""
        order, top = np.argsort(-scores, kind="stable"), max(self.quality)
        ranked = [self.quality[i] for i in order]
        figures = {
            "place": 1 + ranked.index(top),
            "spearman": float(np.corrcoef(ranks(scores), ranks(self.decrease))[0, 1]),
        }
        for count in (1, 5):
            best = max(ranked[:count])
            figures[f"hit@{count}"] = float(best == top)
            figures[f"regret@{count}"] = 100 * (max(top[0], self.baseline) - max(best[0], self.baseline))
        return figures

    def by_chance(self) -> Figures:
        """The mean over random rankings."""
        generator = np.random.default_rng(0)
        drawn = [self.figures(generator.random(len(self.quality))) for _ in range(DRAWS)]
        return {name: float(np.mean([figures[name] for figures in drawn])) for name in drawn[0]}


def quality(trial: Trial) -> tuple[float, float]:
    """By which the best candidate is the best."""
    return trial.measurement.accuracy, -trial.measurement.log_loss


def value(scores: BlockScores, name: str) -> float:
    """One score of one target at one K."""
    terms, ratios = SCORES[name]
    summed = BlockScores(torch.ones_like(scores.sigma), terms(*scores), scores.lengths)
    return float(summed.tail(ratios=ratios, score="taylor").max())


def ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def averaged(models: list[dict[str, dict[str, Figures]]]) -> dict[str, dict[str, Figures]]:
    """Mean figures over models, by score and K."""
    return {
        name: {k: {f: float(np.mean([model[name][k][f] for model in models])) for f in FIGURES} for k in by_k}
        for name, by_k in models[0].items()
    }


def table(rows: dict[str, dict[str, Figures]]) -> str:
    """Plain text; `place` is the best target's in the ranking, regret is in points of accuracy."""
    lines = [f"{'score':15} {'K':>4} " + " ".join(f"{name:>8}" for name in FIGURES)]
    for name, by_k in rows.items():
        for k, figures in by_k.items():
            cells = (f"{figures[f]:8.0%}" if "hit" in f else f"{figures[f]:8.2f}" for f in FIGURES)
            lines.append(f"{name:15} {k:>4} " + " ".join(cells))
    return "\n".join(lines)


def main(
    seeds: Annotated[int, typer.Option(help="Training seeds 0 to N - 1.")] = 5,
    architectures: Annotated[str, typer.Option(help="Forms of the demo's model.")] = "gptj,gpt2,llama",
    models: Annotated[list[Path] | None, typer.Option(help="Folders of other models, measured on --data.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Samples for --models; the first 100 are used.")] = None,
    output: Annotated[Path | None, typer.Option(help="File of the record.")] = None,
) -> None:
    """Train, measure, compare and record."""
    if models and not data:
        raise typer.BadParameter("expected --data, the samples that --models are measured on")
    machine = machine_record()
    torch.set_num_threads(1)
    recall = samples(SAMPLES, seed=1)
    pairs = [(trained(form, seed), recall) for seed in range(seeds) for form in architectures.split(",")]
    names = ["recall"] * len(pairs)
    for folder, file in itertools.product(models or (), data or ()):
        pairs.append((folder, as_samples(file)[:SAMPLES]))
        names.append(file.stem)
    results = [observed(*pair) for pair in tqdm(pairs, "models")]
    records = [{"samples": name, **record} for name, (record, _) in zip(names, results, strict=True)]
    rows = averaged([figures for _, figures in results])
    typer.echo(f"mean over {len(results)} models\n{table(rows)}")
    write_record("bench_selection", {"samples": SAMPLES, "rows": rows, "models": records}, output, machine)


if __name__ == "__main__":
    typer.run(main)
