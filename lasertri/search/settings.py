"""How to adapt: every option of the method, declared here and nowhere else, with the papers' defaults."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from lasertri.data.sample import FEWEST
from lasertri.errors import LasertriError
from lasertri.search.strategies import DEFAULT, STRATEGIES, Strategy
from lasertri.support.options import Option, check
from lasertri.support.patterns import target_pattern

BLOCK_COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Settings:
    """How to adapt.

    A field here is a keyword of `lasertri.adapt`, an option of `lasertri adapt` and a key of its --config, with this
    name, default, text and range.

    Raises:
        LasertriError: a value that its option cannot have, or that does not go with another.
    """

    edit: Annotated[
        Literal["auto", "step", "shrink", "truncate"],
        Option(
            "step: all MLP layers down one gradient, a LoRA adapter; shrink: their singular values; truncate: one "
            "matrix to lower rank, as LASER does; auto: step, or the kind that a given option is of."
        ),
    ] = "auto"
    direction: Annotated[
        Literal["auto", "plain", "whitened"],
        Option("The gradient itself, or whitened on both sides; auto tries both.", section="Step"),
    ] = "auto"
    rank: Annotated[
        int | None,
        Option("Of the step in every layer; by default 16 if plain, 64 if whitened.", section="Step", least=2),
    ] = None
    merge: Annotated[
        bool,
        Option("Save it in the weights, as a plain checkpoint, not as an adapter.", section="Step", flags=("--merge",)),
    ] = False
    strategy: Annotated[
        str | None,
        Option(
            f"What is scored and measured, a column of the papers' tables; by default {DEFAULT}. See lasertri ls.",
            section="Truncation",
            names=(*STRATEGIES,),
        ),
    ] = None
    targets: Annotated[
        str | None,
        Option(
            "Regular expression for module paths; by default the MLPs'. A dot takes every linear layer.",
            section="Model",
        ),
    ] = None
    count: Annotated[
        int,
        Option(
            "Targets to measure, best score first: the papers' q.",
            section="Truncation",
            flags=("--count", "-q"),
            least=1,
        ),
    ] = 5
    ratios: Annotated[
        tuple[float, ...],
        Option("Retained ratios ρ, such as 0.5,0.1; by default the strategy's.", section="Truncation", least=0, most=1),
    ] = ()
    blocks: Annotated[
        tuple[int, ...],
        Option(
            f"Numbers of row blocks K; by default the strategy's, {BLOCK_COUNTS} or 1. With shrink one number.",
            section="Truncation",
            least=1,
        ),
    ] = ()
    svd: Annotated[
        Literal["exact", "laser-compat"],
        Option(
            "laser-compat: LASER's randomised SVD and rounding of ranks, for strategies of one block.",
            section="Truncation",
        ),
    ] = "exact"
    scoring_blocks: Annotated[
        int | None,
        Option(
            "The K that targets are ranked at; the others are factored once targets are chosen. By default 8, with a "
            "large model 16 or 32, for blocks whose shorter side is at most 1024.",
            section="Truncation",
            least=1,
        ),
    ] = None
    race: Annotated[
        bool,
        Option(
            "Try what promises most, by the default strategy and score, and no further what the leading one beats "
            "beyond doubt; else all there is, to the end.",
            section="Truncation",
        ),
    ] = True
    calibration: Annotated[
        int,
        Option("Most samples for gradients and trials; half of all at most, unless others are held out.", least=FEWEST),
    ] = 100
    held_out_limit: Annotated[int, Option("Most samples held out.", least=1)] = 2000
    confirm: Annotated[
        int | None,
        Option(
            "Most fresh samples that the best candidate is confirmed on, taken of those held out if need be (half of "
            "them at most); by default 200 of those beyond. 0: none.",
            section="Truncation",
            least=0,
        ),
    ] = None
    score: Annotated[
        Literal["fisher", "taylor", "paper"],
        Option(
            "What ranks the targets; fisher: the loss that truncation should save, at second order; taylor: at first; "
            "paper: the papers' clamped sum.",
            section="Truncation",
        ),
    ] = "fisher"
    accept: Annotated[
        Literal["test", "best"],
        Option("test: only if p ≤ 0.05 over all candidates jointly, so more than luck; best: the papers' rule."),
    ] = "test"
    max_kl: Annotated[
        float | None,
        Option(
            "Refuse an edit that moves predictions on neutral text by a larger mean KL, in nats; of causal language "
            "models.",
            least=0,
        ),
    ] = None
    max_edits: Annotated[
        int, Option("Most edits, each found on the model with those before it.", section="Truncation", least=1)
    ] = 1
    normalize: Annotated[
        bool, Option("Divide a choice's log-probability by its characters.", section="Samples", flags=("--normalize",))
    ] = False
    delimiter: Annotated[
        str,
        Option(
            "Between prompt and answer, where neither has white space nor the row its own; a space not after an "
            "opening quotation mark or bracket.",
            section="Samples",
        ),
    ] = " "
    chat: Annotated[
        bool,
        Option("Ask in the tokenizer's chat template, as the user's turn.", section="Samples", flags=("--chat",)),
    ] = False
    seed: Annotated[int, Option("Of the split and of the test.", least=0)] = 0
    batch_size: Annotated[int, Option("Rows run through the model at once.", section="Model", least=1)] = 16
    backend: Annotated[
        Literal["auto", "reference", "gram", "triton", "cuda"], Option("Of the ops; see lasertri info.")
    ] = "auto"
    memory_budget: Annotated[
        int | None,
        Option(
            "Bytes for FP64 workspace and kept factors, on the command line GiB; by default 4 GiB, or half of what a "
            "GPU has free.",
            section="Model",
            least=1,
            unit=1 << 30,
        ),
    ] = None
    progress: Annotated[bool, Option("Show progress bars on standard error.", section="Output")] = True

    def __post_init__(self) -> None:
        for name in ("ratios", "blocks"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, Iterable) else (value,))
        check(self)
        self._choose_kind()
        if self.edit == "truncate":
            self._resolve_grid()
        if self.edit == "shrink" and len(self.blocks) > 1:
            raise LasertriError(f"expected one number of blocks with edit='shrink', got {list(self.blocks)}")
        target_pattern(self.targets or "")

    def _resolve_grid(self) -> None:
        """The strategy's own grid where none was given."""
        own = BLOCK_COUNTS if self.plan.several_blocks else (1,)
        if len(own) == 1 and self.blocks not in ((), own):
            raise LasertriError(
                f"expected no blocks with strategy {self.strategy or DEFAULT}, which tries K = 1, got {self.blocks}"
            )
        object.__setattr__(self, "ratios", self.ratios or self.plan.ratios)
        object.__setattr__(self, "blocks", self.blocks or own)
        if not any(ratio < 1 for ratio in self.ratios):
            raise LasertriError(
                f"expected a retained ratio below 1, at which something is left out, got {list(self.ratios)}"
            )
        if self.confirm and self.accept == "best":
            raise LasertriError("expected no confirm with accept='best', which takes the best untested; leave one out")
        if self.svd == "laser-compat" and self.plan.several_blocks:
            single = [name for name, strategy in STRATEGIES.items() if not strategy.several_blocks]
            raise LasertriError(f"expected svd 'exact' with {self.strategy}; 'laser-compat' goes with {single}")

    def _choose_kind(self) -> None:
        """Which kind of edit `auto` is, by the options that were given."""
        given = {name for name, default in DEFAULTS.items() if getattr(self, name) != default}
        for kind, own in OWN_OPTIONS.items():
            if self.edit == "auto" and given & own:
                object.__setattr__(self, "edit", kind)
        if self.edit == "auto":
            object.__setattr__(self, "edit", "step")
        others = set[str]().union(*OWN_OPTIONS.values()) - OWN_OPTIONS.get(self.edit, set())
        if wrong := sorted(given & others):
            raise LasertriError(
                f"expected no {' or '.join(wrong)} with edit={self.edit!r}; leave "
                + ("them" if len(wrong) > 1 else "it")
                + " out, or choose the kind of edit that it is of"
            )

    @property
    def plan(self) -> Strategy:
        """The strategy itself."""
        return STRATEGIES[self.strategy or DEFAULT]

    @property
    def keywords(self) -> dict[str, Any]:
        """Its options as `adapt` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """What a reader needs to repeat the run."""
        return {name: value for name, value in asdict(self).items() if name != "progress"}


DEFAULTS = {field.name: field.default for field in fields(Settings)}
OWN_OPTIONS = {
    "truncate": {
        "strategy",
        "count",
        "ratios",
        "blocks",
        "svd",
        "scoring_blocks",
        "race",
        "score",
        "max_edits",
        "confirm",
    },
    "step": {"direction", "rank", "merge"},
    "shrink": {"blocks"},
}
