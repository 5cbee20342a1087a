"""The eight tasks of LASER and Compress to Impress, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lasertri.data.files import PlacedRow
from lasertri.data.papers import bigbench, bios, counterfact, fever, hotpotqa, truthfulqa
from lasertri.data.papers.form import Form
from lasertri.data.papers.source import Source
from lasertri.data.sample import Sample
from lasertri.errors import LasertriError
from lasertri.support.shown import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROTOCOLS = ("corrected", "laser")


@dataclass(frozen=True)
class Task:
    """A public dataset and how its rows become samples.

    Attributes:
        size: how many samples the papers have.
    """

    source: Source
    samples: Callable[[Sequence[Sequence[PlacedRow]], Form], Iterator[Sample]]
    size: int


TASKS = {
    "counterfact": Task(counterfact.SOURCE, counterfact.samples, 65_757),
    "hotpotqa": Task(hotpotqa.SOURCE, hotpotqa.samples, 14_618),
    "fever": Task(fever.SOURCE, fever.samples, 13_086),
    "bios-gender": Task(bios.SOURCE, bios.gender_samples, 39_642),
    "bios-profession": Task(bios.SOURCE, bios.profession_samples, 19_223),
    "truthfulqa": Task(truthfulqa.SOURCE, truthfulqa.samples, 5_882),
    "epistemic-reasoning": Task(bigbench.EPISTEMIC, bigbench.epistemic_samples, 2_000),
    "qa-wikidata": Task(bigbench.WIKIDATA, bigbench.wikidata_samples, 20_321),
}


def task_samples(
    name: str,
    *,
    masked: bool = False,
    data_dir: str | Path | None = None,
    protocol: str = "corrected",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Sample]:
    """All samples of a task, in the order of LASER's code, which draws nothing: its split is first fifth and rest.

    Args:
        name: a key of `TASKS`.
        masked: for a masked model; `tasks.MASK` then marks where the answer goes, or it goes at the end.
        data_dir: folder with the dataset's own files, or a copy of the hub's parquet branch; by default the hub.
        protocol: "corrected", or "laser" with the bugs of its code: answers found in the prompt (hotpotqa,
            qa-wikidata) and a missing space (truthfulqa). The scale n/(n+1) of its masked models' log loss is a bug of
            the measure, not of a task, and is not brought back; nor are masked models asked without what the
            tokenizer opens and closes texts with, as LASER asks them in epistemic-reasoning.
        tokenizer: the model's own, which counts an answer's tokens (hotpotqa) and cuts biographies for masked models
            (bios-gender, bios-profession); without it words are counted.

    Raises:
        LasertriError: an unknown name, or data that is missing, out of reach or of another form.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise LasertriError(f"expected a task among {list(TASKS)}, got {shown(name)}")
    if protocol not in PROTOCOLS:
        raise LasertriError(f"expected a protocol among {list(PROTOCOLS)}, got {shown(protocol)}")
    task = TASKS[name]
    splits = task.source.rows(None if data_dir is None else Path(data_dir))
    found = list(task.samples(splits, Form(masked, protocol == "laser", tokenizer)))
    if not found:
        raise LasertriError(f"{name}: expected samples, got none of {sum(map(len, splits))} rows")
    return found


def described(name: str, samples: Sequence[Sample], most: int = 8) -> str:
    """A task in a line: its size, beside the papers' where it differs, and how often each right answer occurs."""
    counts = Counter(sample.answers[sample.gold] for sample in samples)
    ranked = counts.most_common(most)
    differs = name in TASKS and TASKS[name].size != len(samples)
    papers = f" ({TASKS[name].size:,} in the papers)" if differs else ""
    shown = ", ".join(f"{answer!r} {count:,}" for answer, count in ranked)
    rest = f" and {len(counts) - most:,} others" if len(counts) > most else ""
    return f"{name}: {len(samples):,} samples{papers}, majority {ranked[0][1] / len(samples):.1%}: {shown}{rest}"
