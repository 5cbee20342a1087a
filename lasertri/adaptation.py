"""`Adaptation`: what came out, as an object, as JSON and as a folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.artefacts import whole_directory
from lasertri.comparison import Comparison
from lasertri.decide import Decision
from lasertri.edit import Edit
from lasertri.report import render, report_obstacle
from lasertri.settings import Settings
from lasertri.summary import summarize
from lasertri.targets import Target
from lasertri.trial import Trial

logger = logging.getLogger(__name__)

SUMMARY_NAME = "adaptation.json"
REPORT_NAME = "report.html"


@dataclass(frozen=True)
class Adaptation:
    """The result of `adapt`.

    Attributes:
        model, tokenizer: as they were given; the edit is not applied.
        edit: the accepted edit, or None.
        decision: the accepted or the best rejected trial, and the joint test.
        calibration, held_out: the model before and after the edit.
        ranking: score of every target, highest first, in nats of predicted decrease ("taylor").
        trials: every measured candidate.
        requested: number of candidates asked for; some are the same edit.
        environment: versions and devices it was measured with.
        seconds: by phase.
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    edit: Edit | None
    decision: Decision
    calibration: Comparison
    held_out: Comparison
    ranking: dict[Target, float] = field(repr=False)
    trials: Sequence[Trial] = field(repr=False)
    requested: int
    settings: Settings
    environment: dict[str, object] = field(repr=False)
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Everything that was measured, ready for JSON."""
        accepted, rejected = self.decision.accepted, self.decision.rejected
        return {
            "model": self.model.config._name_or_path,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "baseline": self.calibration.baseline.to_dict(),
            "edit": None if accepted is None else accepted.candidate.to_dict(),
            "rejected": None if rejected is None else rejected.to_dict(),
            "p_value": self.decision.p_value,
            "reason": self.decision.reason,
            "calibration": self.calibration.to_dict(),
            "held_out": self.held_out.to_dict(),
            "candidates": {
                "requested": self.requested,
                "distinct": len({trial.candidate.effect for trial in self.trials}),
                "measured": len(self.trials),
                "finished": sum(trial.finished for trial in self.trials),
            },
            "scores": [
                {"target": str(target), "layer": target.layer, "role": target.role, "score": score}
                for target, score in self.ranking.items()
            ],
            "trials": [trial.to_dict() for trial in self.trials],
            "seconds": sum(self.seconds.values()),
            "seconds_by_phase": self.seconds,
            "settings": self.settings.to_dict(),
            "environment": self.environment,
        }

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write the edited model as a plain Hugging Face checkpoint, the edit alone, and what was measured.

        It does not matter whether the edit is applied by now. Without one only what was measured is written. The folder
        appears when it is complete.

        Raises:
            LasertriError: the folder has something in it, or cannot be written.
        """
        with whole_directory(Path(directory), overwrite=overwrite) as folder:
            if self.edit is not None:
                with self.edit.applied(self.model):
                    self.model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
                self.edit.save(folder)
            summary = json.dumps(self.to_dict(), indent=2, allow_nan=False)
            (folder / SUMMARY_NAME).write_text(summary + "\n", encoding="utf-8")
            obstacle = report_obstacle()
            if obstacle is None:
                self.report(folder / REPORT_NAME)
            else:
                logger.warning("%s is not written: %s", REPORT_NAME, obstacle)

    def report(self, path: str | Path) -> None:
        """Write `report.html`, self-contained.

        Raises:
            LasertriError: the extra `report` is not installed.
        """
        Path(path).write_text(render(self.to_dict()), encoding="utf-8")

    def __str__(self) -> str:
        return summarize(self.to_dict())
