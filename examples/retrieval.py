"""An encoder finds documents by cosine similarity. Which truncation lets it find more of the right ones?

    python examples/retrieval.py

A small BERT is trained on pairs of a query and a document. Half of them share their topic; the others only a word of
boilerplate, such as a site's "contact us". In the samples that it is adapted to, and in those held out, boilerplate
says nothing, and the topic alone is right. A sample is a query with eight documents; its score is the reciprocal rank
of the right one, its loss that of a choice among the eight by cosine similarity.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import BertConfig, BertModel

from lasertri import Adaptation, Objective, adapt

TOPICS, WORDS, BOILERPLATE = 12, 8, 12  # topics, words of each, words of boilerplate
VOCABULARY = TOPICS * WORDS + BOILERPLATE
LENGTH, DOCUMENTS, TEMPERATURE = 6, 8, 0.1


@dataclass(frozen=True)
class Search:
    """One sample: the query `[LENGTH]`, `[DOCUMENTS, LENGTH]` documents, and which of them is right."""

    query: Tensor
    documents: Tensor
    right: int


def text(topics: Tensor, boilerplate: Tensor, generator: torch.Generator) -> Tensor:
    """A text of every topic, `[N, LENGTH]`: a word of boilerplate, then words of the topic."""
    words = topics.unsqueeze(1) * WORDS + torch.randint(WORDS, (len(topics), LENGTH - 1), generator=generator)
    return torch.cat([TOPICS * WORDS + boilerplate.unsqueeze(1), words], dim=1)


def draw(count: int, seed: int) -> list[Search]:
    """Queries with documents of different topics; boilerplate is drawn for each text alone."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        topics = torch.randperm(TOPICS, generator=generator)[:DOCUMENTS]
        boilerplate = torch.randint(BOILERPLATE, (DOCUMENTS + 1,), generator=generator)
        right = int(torch.randint(DOCUMENTS, (1,), generator=generator))
        query = text(topics[right : right + 1], boilerplate[:1], generator)[0]
        found.append(Search(query, text(topics, boilerplate[1:], generator), right))
    return found


def embed(model: nn.Module, ids: Tensor) -> Tensor:
    """Directions `[N, width]` of texts `[N, LENGTH]`: the mean of the last hidden states."""
    return normalize(model(input_ids=ids).last_hidden_state.mean(dim=1), dim=-1)


def forward(model: nn.Module, batch: list[Search]) -> Tensor:
    """Cosine of every query and each of its own documents, `[B, DOCUMENTS]`."""
    queries = embed(model, torch.stack([sample.query for sample in batch]))
    documents = embed(model, torch.cat([sample.documents for sample in batch])).unflatten(0, (len(batch), DOCUMENTS))
    return torch.einsum("bw,bdw->bd", queries, documents)


def rights(batch: list[Search]) -> Tensor:
    """Numbers of the right documents, `[B]`."""
    return torch.tensor([sample.right for sample in batch])


def reciprocal_rank(cosines: Tensor, batch: list[Search]) -> Tensor:
    """1 where the right document comes first, 1/2 where it comes second, and so on, `[B]`."""
    right = cosines.gather(1, rights(batch).unsqueeze(1))
    return 1 / (cosines >= right).sum(dim=1)


OBJECTIVE = Objective(
    forward=forward,
    loss=lambda cosines, batch: cross_entropy(cosines / TEMPERATURE, rights(batch), reduction="none"),
    score=reciprocal_rank,
)


def train(steps: int, pairs: int = 64) -> BertModel:
    """An encoder trained to tell the document of each pair from the other pairs' documents."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        topics, other_topics = torch.randint(TOPICS, (2, pairs), generator=generator)
        boilerplate, other_boilerplate = torch.randint(BOILERPLATE, (2, pairs), generator=generator)
        alike = torch.rand(pairs, generator=generator) < 0.5  # in their topic, else in their boilerplate
        queries = embed(model, text(topics, boilerplate, generator))
        documents = embed(
            model,
            text(
                torch.where(alike, topics, other_topics), torch.where(alike, other_boilerplate, boilerplate), generator
            ),
        )
        optimizer.zero_grad()
        cross_entropy(queries @ documents.T / TEMPERATURE, torch.arange(pairs)).backward()
        optimizer.step()
    return model


def main(steps: int = 300, samples: int = 500) -> Adaptation:
    """Train, adapt to searches where boilerplate says nothing, and show what came out."""
    model = train(steps)
    result = adapt(model, draw(samples, seed=2), objective=OBJECTIVE, edit="truncate", progress=False)
    print(result)
    return result


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--steps", type=int, default=300, help="training steps")
    arguments.add_argument("--samples", type=int, default=500, help="searches to adapt to and to hold out")
    main(**vars(arguments.parse_args()))
