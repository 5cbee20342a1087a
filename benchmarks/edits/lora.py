"""LoRA fine-tuning by peft, its learning rate and number of epochs chosen by folds, and in hindsight.

All linear layers, rank 8, α = 16, no dropout; AdamW at a constant learning rate without warm-up or weight decay, 8
samples a step, shuffled anew every epoch. The loss is the negative log-likelihood of the completion's tokens or, of
samples with choices, of the right choice among them.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, LoraGAConfig, get_peft_model
from peft.tuners.lora import preprocess_loraga
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.adapt.plain import Phases
from benchmarks.edits.case import Case, Outcome, objective, outcome, tokens
from lasertri.language.samples import EncodedSamples
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_targets
from lasertri.search.cross_fit import folds

RATES = (3e-4, 1e-3)
EPOCHS = 5
FOLDS = 2
RANK, ALPHA = 8, 16
BATCH = 8
FIGURES = ("accuracy", "balanced_accuracy", "collapsed", "log_loss", "choice_log_loss")
# Forward-equivalents: a forward pass of all calibration samples 1, the backward pass through the activations 1,
# gradients of whole weights 1; those of the adapters count nothing. Samples count by their tokens, without padding.
FORWARD, TRAINED, WHOLE_GRADIENT = 1, 2, 3


@dataclass(frozen=True)
class Run:
    """A learning rate and a number of epochs.

    Attributes:
        cross_fitted: loss of the calibration samples, each by the model trained on the other folds; it chooses.
        seconds: of training on all calibration samples.
        held_out: what that model gives.
    """

    rate: float
    epochs: int
    cross_fitted: float
    seconds: float
    held_out: Outcome

    @property
    def options(self) -> dict[str, object]:
        return {"rate": self.rate, "epochs": self.epochs}

    def to_dict(self) -> dict[str, object]:
        """Figures, without the record sample by sample."""
        figures = {name: value for name, value in self.held_out.to_dict().items() if name in FIGURES}
        return self.options | {"cross_fitted": self.cross_fitted, "training_seconds": self.seconds} | figures


def lora(case: Case, *, from_gradient: bool = False) -> dict[str, object]:
    """From peft's default start, A random and B zero; or from LoRA-GA's."""
    parts, work, phases = (
        folds(case.calibration.strata, case.calibration.groups, count=FOLDS, seed=case.seed),
        tokens(case.calibration),
        Phases(),
    )
    with phases("selection"):
        cross_fitted = {rate: _cross_fitted(case, parts, rate, from_gradient) for rate in RATES}
    runs = []
    for rate in RATES:
        training = Phases()
        trained = epochs(case, range(len(work)), rate, from_gradient)
        for epoch in range(EPOCHS):
            with training("all"):
                model = next(trained)
            with phases("evaluation"):
                after = outcome(model, case.held_out)
            runs.append(Run(rate, epoch + 1, cross_fitted[rate][epoch], training.seconds["all"], after))
        trained.close()
    chosen = min(runs, key=lambda run: run.cross_fitted)
    hindsight = min(runs, key=lambda run: run.held_out.loss)
    others = sum(work.sum() - work[part].sum() for part in parts) / work.sum()  # samples trained on over all folds
    start = WHOLE_GRADIENT * from_gradient
    selection = len(RATES) * (others * (start + TRAINED * EPOCHS) + FORWARD * EPOCHS)
    return {
        "chosen": chosen.options,
        "held_out": case.compared(chosen.held_out),
        "hindsight": hindsight.options | {"held_out": case.compared(hindsight.held_out)},
        "runs": [run.to_dict() for run in runs],
        "objective": objective(case.calibration),
        "folds": FOLDS,
        "seconds": dict(phases.seconds) | {"training": chosen.seconds},
        "forward_equivalents": float(selection + start + TRAINED * chosen.epochs),
    }


def lora_ga(case: Case) -> dict[str, object]:
    """From LoRA-GA's start (arXiv 2407.05000): A and B from the gradient's singular vectors, taken off the weights."""
    return lora(case, from_gradient=True)


def _cross_fitted(case: Case, parts: Sequence[Sequence[int]], rate: float, from_gradient: bool) -> list[float]:
    """Loss after every epoch, of each part by the model that was trained on the others."""
    log_probs = np.zeros((EPOCHS, len(case.calibration)))
    for left_out in parts:
        others = sorted(set(range(len(case.calibration))) - set(left_out))
        for epoch, model in enumerate(epochs(case, others, rate, from_gradient)):
            log_probs[epoch, left_out] = outcome(model, case.calibration, left_out).objective
    return [float(loss) for loss in -log_probs.mean(axis=1)]


def epochs(
    case: Case, chosen: Sequence[int], rate: float, from_gradient: bool
) -> Generator[PreTrainedModel, None, None]:
    """The model after each epoch on the chosen calibration samples; in the end it is as it was."""
    model, samples = case.model, case.calibration
    options: dict[str, Any] = {}
    if from_gradient:
        model = copy.deepcopy(model)  # this start changes the weights
        options = {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}
    modules = sorted({target.module for target in find_targets(model, ".")})
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=modules, **options)
    with preserved(model):
        torch.manual_seed(case.seed)
        if from_gradient:
            preprocess_loraga(model, config, lambda: _gradients(model, samples, chosen))
        adapted = get_peft_model(model, config)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        generator = np.random.default_rng(case.seed)
        try:
            for _ in range(EPOCHS):
                model.train()
                order = generator.permutation(chosen).tolist()
                for start in range(0, len(order), BATCH):
                    optimizer.zero_grad()
                    _loss(model, samples, order[start : start + BATCH]).backward()
                    optimizer.step()
                yield model.eval()
        finally:
            adapted.unload()


def _gradients(model: PreTrainedModel, samples: EncodedSamples, chosen: Sequence[int]) -> None:
    """Add up what peft divides by the number of batches."""
    for start in range(0, len(chosen), BATCH):
        _loss(model, samples, chosen[start : start + BATCH]).backward()


def _loss(model: PreTrainedModel, samples: EncodedSamples, chosen: Sequence[int]) -> Tensor:
    """Negative log-probability of the right answers, or of the right choices among the choices; mean over samples."""
    return torch.stack([batch.loss(model) for batch in samples.loss_batches(chosen)]).sum() / len(chosen)
