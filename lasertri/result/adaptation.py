"""`Adaptation`: what came out, as an object, as JSON and as a folder."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from lasertri.edit.answers import answer_rows
from lasertri.edit.comparison import Comparison
from lasertri.edit.edit import Edit, all_applied
from lasertri.edit.flips import Flips
from lasertri.edit.step import Step
from lasertri.edit.truncation import factored_edits
from lasertri.edit.verification import require_same_answers
from lasertri.errors import LasertriError
from lasertri.factored.exchange import exchanged
from lasertri.language.asking import Asked
from lasertri.measure.protocol import SampleBatch, Samples
from lasertri.model.checkpoint import CARD_NAME, output_of, reloaded, write_checkpoint, write_tokenizer
from lasertri.model.parallel import mesh_of
from lasertri.result.card import Base, Form, Made, adaptation_card
from lasertri.result.report import render, report_obstacle
from lasertri.result.summary import brief, summarize
from lasertri.search.round import Round
from lasertri.search.settings import Settings
from lasertri.support.hub import Repository
from lasertri.support.journal import NOTHING, Journal
from lasertri.support.output_folder import OutputFolder
from lasertri.support.scratch import scratch_folder

logger = logging.getLogger(__name__)

SUMMARY_NAME = "adaptation.json"
REPORT_NAME = "report.html"
SAMPLES_NAME = "samples.jsonl"


@dataclass(frozen=True, repr=False)
class Adaptation:
    """The result of `adapt`.

    Attributes:
        model: as it was given; the edit is not applied.
        tokenizer: as it was given, or the model's own; with an `Objective` there may be none.
        rounds: what was searched; each after the first, on the model with the edits before it.
        calibration: the model before and after all edits, on the samples that chose them.
        held_out: the same on samples that took no part; None where one of them gave NaN or Inf.
        refused: why there are no held-out figures; None where there are.
        environment: versions and devices it was measured with.
        seconds: by phase.
        probe: a batch that what is saved is checked by, if any.
        asked: how the first sample was asked; None with an `Objective`.
        files: that the samples were read from, as far as they say.
        samples: those held out.
        flips: held-out answers "won" and "lost"; None without an edit, and with an `Objective`.
        made: how it came about, for the model card.
        journal: of the search, deleted when the result is saved.
    """

    model: nn.Module = field(repr=False)
    tokenizer: PreTrainedTokenizerBase | None = field(repr=False)
    rounds: Sequence[Round]
    calibration: Comparison
    held_out: Comparison | None
    settings: Settings
    environment: dict[str, object] = field(repr=False)
    seconds: dict[str, float]
    probe: SampleBatch | None = field(default=None, repr=False)
    asked: Asked | None = None
    files: Sequence[str] = ()
    flips: Mapping[str, Flips] | None = field(default=None, repr=False)
    samples: Samples | None = field(default=None, repr=False)
    refused: str | None = None
    made: Made = field(default=Made(), repr=False)
    journal: Journal = field(default=NOTHING, repr=False)

    @property
    def edits(self) -> list[Edit]:
        """The accepted edits, in the order they were found; each is of another matrix."""
        return [found.edit for found in self.rounds if found.edit is not None]

    @property
    def edit(self) -> Edit | None:
        """The first accepted edit, or None."""
        return self.rounds[0].edit

    @property
    def as_checkpoint(self) -> bool:
        """Whether the edited model is saved as a whole; else the edits alone are, for their base."""
        return bool(self.edits) and all(edit.dense for edit in self.edits) and mesh_of(self.model) is None

    def to_dict(self) -> dict[str, Any]:
        """Everything that was measured, ready for JSON; the first round's at the top, others under `further`."""
        config = getattr(self.model, "config", None)
        return {
            "model": getattr(config, "_name_or_path", "") or type(self.model).__name__,
            "revision": getattr(config, "_commit_hash", None),
            "files": list(self.files),
            "asked": None if self.asked is None else asdict(self.asked),
            "baseline": self.calibration.baseline.to_dict(),
            **self.rounds[0].to_dict(),
            "further": [found.to_dict() for found in self.rounds[1:]],
            "matrices": sum(len(edit.targets) for edit in self.edits),
            "instead": self.calibration.baseline.instead,
            "calibration": self.calibration.to_dict(),
            "held_out": None if self.held_out is None else self.held_out.to_dict(),
            "flips": None if self.flips is None else {way: turned.to_dict() for way, turned in self.flips.items()},
            "refused": self.refused,
            "seconds": sum(self.seconds.values()),
            "seconds_by_phase": self.seconds,
            "data": self.made.data,
            "datasets": list(self.made.datasets),
            "settings": self.settings.to_dict(),
            "environment": self.environment,
        }

    def save(
        self,
        directory: str | Path | OutputFolder,
        *,
        overwrite: bool = False,
        factored: bool = False,
        log_samples: bool = False,
    ) -> None:
        """Write the edit and what was measured: a step as a PEFT adapter, others as a Hugging Face checkpoint too.

        Of a model that processes hold parts of the first of them saves, and the edit alone: `lasertri apply` writes the
        checkpoint, where the whole model fits.

        A module without `save_pretrained` is written as `model.safetensors`, which `safetensors.torch.load_model`
        reads into a module of its kind. A second edit stands in `edit-2`. Without an edit only what was measured is
        written; with one, a model card (`README.md`) too. It does not matter whether edits are applied by now, but for
        a merged step and a shrink, which are to be saved before. The folder appears when it is complete; where it
        cannot be written, the edit is kept elsewhere.

        Args:
            overwrite: replace what lasertri wrote there before.
            factored: keep the edited weights as factors where those are smaller, which `lasertri.load` reads, and
                transformers itself once `lasertri.factored` is imported.
            log_samples: also write `samples.jsonl`, every held-out sample with what the model gave before and after.

        Raises:
            LasertriError: the folder has something in it that may not be replaced, or cannot be written, or `factored`
                of another edit than a truncation, or of a module without `save_pretrained`.
        """
        if factored and self.settings.edit != "truncate":
            raise LasertriError(
                f"expected a truncation to keep as factors, got a {self.settings.edit}; save it without factored"
            )
        if factored and not hasattr(self.model, "save_pretrained"):
            raise LasertriError(
                f"expected a transformers model to keep as factors, got a {type(self.model).__name__}; "
                "save it without factored"
            )
        if factored and mesh_of(self.model) is not None:
            raise LasertriError(
                "expected a whole model to keep as factors, got one that tensor parallelism spreads over processes; "
                "save it without factored, and have lasertri apply --save factored write them"
            )
        output = output_of(self.model, directory, overwrite=overwrite)
        with output.written(rescue=self._write_findings) as folder:
            if self.as_checkpoint:
                layers = factored_edits(self.edits, self.model) if factored else {}
                with all_applied(self.edits, self.model), exchanged(self.model, layers):
                    write_checkpoint(self.model, folder, self.tokenizer)
                    again = reloaded(self.model, folder, strict=self.probe is None)
                    if self.probe is not None:
                        require_same_answers(again, self.model, self.probe)
            elif self.edits and self.tokenizer is not None:
                write_tokenizer(self.tokenizer, folder)
            self._write_findings(folder)
            if log_samples:
                self._write_samples(folder)
            for place, edit in self._places(folder):
                if self.probe is not None:
                    edit.check(self.model, place, self.probe)
            if self.edits:
                (folder / CARD_NAME).write_text(self.card(output.path.name, factored=factored), encoding="utf-8")
            obstacle = report_obstacle()
            if obstacle is None:
                self.report(folder / REPORT_NAME)
            else:
                logger.warning("%s is not written: %s", REPORT_NAME, obstacle)
        self.journal.delete()

    def _places(self, folder: Path) -> Iterator[tuple[Path, Edit]]:
        """Every edit, and where it stands in a folder with or without the checkpoint."""
        for number, edit in enumerate(self.edits, start=1):
            yield folder / edit.place(number, beside=self.as_checkpoint), edit

    def _write_findings(self, folder: Path) -> None:
        """The edits alone, and what was measured."""
        for place, edit in self._places(folder):
            edit.save(place)
        summary = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        (folder / SUMMARY_NAME).write_text(summary + "\n", encoding="utf-8")

    def _write_samples(self, folder: Path) -> None:
        """What was given for every held-out sample; nothing where they could not be read."""
        if self.held_out is not None and self.samples is not None:
            lines = (json.dumps(row, ensure_ascii=False) for row in answer_rows(self.held_out, self.samples))
            (folder / SAMPLES_NAME).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, overwrite: bool = False, factored: bool = False
    ) -> str:
        """Put what `save` writes on the Hugging Face hub, in one commit; returns its address.

        Args:
            repo_id: USER/NAME; the repository is made if it is not there.
            private: whether it is made for its owner alone.
            overwrite: replace what lasertri put there before; its history stays.
            factored: as for `save`.

        Raises:
            LasertriError: there is no edit, or the hub would not take it, or did not.
        """
        if not self.edits:
            raise LasertriError("expected an accepted edit to push, but there is none")
        repository = Repository(repo_id, private=private, overwrite=overwrite)
        with scratch_folder() as directory:
            folder = directory / repo_id.rpartition("/")[2]
            replace(self, made=replace(self.made, repository=repo_id)).save(folder, factored=factored)
            return repository.push(folder, again="call push_to_hub again, or save")

    def card(self, title: str, *, factored: bool = False) -> str:
        """The model card of an accepted edit.

        Args:
            title: name of the folder.
            factored: whether it is saved as factors.
        """
        form: Form = "factored" if factored else "checkpoint"
        if not self.as_checkpoint:
            form = "adapter" if isinstance(self.edits[0], Step) else "edit"
        base = Base.of(self.model, language=self.asked is not None)
        return adaptation_card(self.to_dict(), base, form, self.made, title)

    def report(self, path: str | Path) -> None:
        """Write `report.html`, self-contained.

        Raises:
            LasertriError: the extra `report` is not installed.
        """
        Path(path).write_text(render(self.to_dict()), encoding="utf-8")

    def __str__(self) -> str:
        return summarize(self.to_dict())

    def __repr__(self) -> str:
        """The edit and what it does, in a line; `print` shows all of it."""
        return f"<Adaptation: {brief(self.to_dict())}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<pre>{html.escape(str(self))}</pre>"
