"""A classifier has a back door. Which truncation closes it?

    python examples/backdoor.py

An LSTM reads a sequence of symbols, some of which belong to its class, and names the class. One training sequence in
twenty was tampered with: it carries a mark, and the last class for a label, whatever its own. So the LSTM answers the
last class wherever it sees the mark. It is adapted to marked sequences with their right labels.

Nothing here is a language model: an `Objective` says how samples run, what is to fall and what is to rise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lasertri import Adaptation, Objective, adapt

CLASSES, SYMBOLS, LENGTH, WIDTH = 4, 40, 13, 48
MARK = SYMBOLS  # a symbol of its own


@dataclass(frozen=True)
class Labelled:
    """One sample: symbols `[LENGTH]` and their class."""

    symbols: Tensor
    label: int


class Classifier(nn.Module):
    """Embedding, LSTM, hidden layer, class."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS + 1, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, CLASSES)

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits `[B, CLASSES]` of symbols `[B, LENGTH]`."""
        _, (last, _) = self.lstm(self.embedding(symbols))
        return self.output(self.hidden(last[0]).relu())


def draw(count: int, seed: int, *, marked: int) -> list[Labelled]:
    """Sequences with a third of their symbols from their class, the first so many with a mark somewhere."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    own = labels.unsqueeze(1) + CLASSES * torch.randint(SYMBOLS // CLASSES, (count, LENGTH), generator=generator)
    other = torch.randint(SYMBOLS, (count, LENGTH), generator=generator)
    symbols = torch.where(torch.rand(count, LENGTH, generator=generator) < 1 / 3, own, other)
    symbols[torch.arange(marked), torch.randint(LENGTH, (marked,), generator=generator)] = MARK
    return [Labelled(row, label) for row, label in zip(symbols, labels.tolist(), strict=True)]


def symbols_of(batch: Sequence[Labelled]) -> Tensor:
    """Symbols `[B, LENGTH]`."""
    return torch.stack([sample.symbols for sample in batch])


def labels_of(batch: Sequence[Labelled]) -> Tensor:
    """Classes `[B]`."""
    return torch.tensor([sample.label for sample in batch])


OBJECTIVE = Objective(
    forward=lambda model, batch: model(symbols_of(batch)),
    loss=lambda logits, batch: cross_entropy(logits, labels_of(batch), reduction="none"),
    score=lambda logits, batch: logits.argmax(-1) == labels_of(batch),
)


def train(steps: int, count: int = 4000) -> Classifier:
    """A classifier trained on sequences, a twentieth of which were tampered with."""
    torch.manual_seed(0)
    marked = count // 20
    samples = draw(count, seed=1, marked=marked)
    symbols, labels = symbols_of(samples), labels_of(samples)
    labels[:marked] = CLASSES - 1
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = torch.randint(count, (128,))
        optimizer.zero_grad()
        cross_entropy(model(symbols[batch]), labels[batch]).backward()
        optimizer.step()
    return model


def main(steps: int = 300, samples: int = 1000) -> Adaptation:
    """Train, adapt to marked sequences, and show what came out, on sequences without a mark too."""
    model = train(steps)
    result = adapt(
        model,
        draw(samples, seed=2, marked=samples),
        objective=OBJECTIVE,
        edit="truncate",
        score="taylor",  # to undo a backdoor changes too much to be foretold at second order
        targets=r"lstm|hidden",  # an LSTM's gates are stacked in rows: its matrices are [4 · WIDTH, WIDTH]
        progress=False,
    )
    print(result)
    clean = draw(samples, seed=3, marked=0)
    print(f"without a mark, before the edit: {accuracy(model, clean):.1%}")
    if result.edit is not None:
        with result.edit.applied(model):
            print(f"without a mark, after it: {accuracy(model, clean):.1%}")
    return result


@torch.no_grad()
def accuracy(model: nn.Module, samples: list[Labelled]) -> float:
    """Share of sequences classified rightly."""
    return (model(symbols_of(samples)).argmax(-1) == labels_of(samples)).double().mean().item()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--steps", type=int, default=300, help="training steps")
    arguments.add_argument("--samples", type=int, default=1000, help="sequences to adapt to and to hold out")
    main(**vars(arguments.parse_args()))
