"""FEVER (arXiv 1803.05355) without its evidence: is a claim true or false?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lasertri.data.files import PlacedRow
from lasertri.data.papers.form import Form, ended
from lasertri.data.papers.source import Source, index_of, value_of
from lasertri.data.sample import Sample

SOURCE = Source(
    repository="EleutherAI/fever",
    config="v1.0",
    splits=("paper_dev", "paper_test"),
    columns=("claim", "label"),
    editions=(("paper_dev.jsonl", "paper_test.jsonl"),),
    url="https://fever.ai/dataset/fever.html",
)
LABELS = ("REFUTES", "SUPPORTS")
UNKNOWN = "NOT ENOUGH INFO"  # such claims are in the files, not in the hub's copy


def samples(splits: Sequence[Sequence[PlacedRow]], form: Form) -> Iterator[Sample]:
    """Every claim once, in the order of its first row; claims that a split labels both ways are left out."""
    for split in splits:
        claims: dict[str, tuple[str, set[int]]] = {}
        for placed in split:
            if placed[1].get("label") != UNKNOWN:
                label = index_of(placed, "label", LABELS)
                claims.setdefault(value_of(placed, "claim", str), (placed[0], set()))[1].add(label)
        for claim, (place, labels) in claims.items():
            if len(labels) == 1:
                prompt = f"Consider the following claim: {ended(claim)} Is this claim true or false. The claim is"
                yield Sample(prompt, choices=("false", "true"), label=labels.pop(), source=place)
