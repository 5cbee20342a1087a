"""Steps and what they are made of, for the tests of several files."""

from collections.abc import Sequence

import torch
from tiny import make_samples, make_tokenizer
from torch import nn

from lasertri import Sample
from lasertri.edit.step import Step
from lasertri.language.samples import EncodedSamples
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target, find_linear_layers
from lasertri.search.directions import make_step
from lasertri.search.tokens import Room, Tokens, gather_tokens


def encoded(model: nn.Module, architecture: str, samples: Sequence[Sample] | int = 12, batch_size: int = 5):
    chosen = make_samples(samples) if isinstance(samples, int) else samples
    return EncodedSamples(chosen, model=model, tokenizer=make_tokenizer(architecture), batch_size=batch_size)


def gathered(
    model: nn.Module, samples: EncodedSamples, targets: Sequence[Target] | None = None, most: int | None = None
) -> dict[Target, Tokens]:
    """The tokens of every linear layer."""
    with preserved(model):
        batches = samples.loss_batches(range(len(samples)))
        return gather_tokens(model, targets or find_linear_layers(model), batches, Room(most))


def a_step(
    model: nn.Module, architecture: str, direction: str = "whitened", *, rank: int = 64, size: float = 0.5
) -> Step:
    """A step that is felt, of every linear layer, with a note of its model."""
    samples = encoded(model, architecture)
    with torch.no_grad():
        loss = samples.read(model).sample_losses().mean()
    step = make_step(gathered(model, samples), direction, rank=rank, loss=float(loss), samples=len(samples))
    return step.scaled(size).known_by(model)
