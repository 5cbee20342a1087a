"""A step of larger models on more GPUs: which hold it, and how the counted work grows and is shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.roofline.costs import ASIDE, Cost, Seconds, total
from benchmarks.roofline.count import LAYERS, SAMPLES, TOKENS, VOCABULARY, WIDTH

GB = 1e9
H200 = 141 * GB
USABLE = 0.92  # of a GPU's memory: the rest is the driver's, the libraries' and fragments
ON_A_NODE = 8
GPUS = (1, 2, 4, 8, 16, 32, 64)
BATCH = 16  # rows
RANK = 64
HASHING = ("SHA-256", ASIDE)  # all that a step has other threads do, too
ALONE = "before"  # the phase that the first process goes through for all


@dataclass(frozen=True)
class Shape:
    """A model's, in BF16.

    Attributes:
        gated: whether an MLP has three matrices.
        keys: width of keys and of values.
    """

    layers: int
    width: int
    inner: int
    vocabulary: int
    keys: int
    gated: bool = True

    @property
    def mlp(self) -> int:
        """Numbers in the matrices of all MLPs."""
        return self.layers * (3 if self.gated else 2) * self.width * self.inner

    @property
    def numbers(self) -> int:
        attention = self.layers * (2 * self.width**2 + 2 * self.width * self.keys)
        return self.mlp + attention + 2 * self.vocabulary * self.width

    @property
    def sides(self) -> int:
        """Rows and columns of all MLPs' matrices together."""
        return self.layers * (3 if self.gated else 2) * (self.width + self.inner)

    @property
    def token_bytes(self) -> int:
        """Of all tokens: what every MLP's matrices are given, once where they share it, and gradients at outputs."""
        inner = (3 if self.gated else 2) * self.inner
        return 2 * SAMPLES * TOKENS * self.layers * (2 * self.width + inner)

    @property
    def pass_bytes(self) -> int:
        """Of a step of the MLPs beside weights and tokens: one backward pass, both folds' factors, one gradient."""
        layer = 10 * self.width + 4 * self.inner  # what autograd keeps of a token
        activations = 2 * BATCH * TOKENS * self.layers * layer
        factors = 2 * 4 * RANK * self.sides
        gradient = 3 * 4 * self.width * self.inner  # of one matrix, as the plain direction is made from it
        return activations + factors + gradient


GPTJ = Shape(LAYERS, WIDTH, 4 * WIDTH, VOCABULARY, WIDTH, gated=False)
MODELS = {
    "7 B (Llama 2)": Shape(32, 4096, 11008, 32000, 4096),
    "70 B (Llama 3)": Shape(80, 8192, 28672, 128256, 1024),
    "405 B (Llama 3.1)": Shape(126, 16384, 53248, 128256, 1024),
}


def steps(counted: Mapping[str, Seconds], costs: Mapping[str, Cost]) -> tuple[list[str], Iterator[list[str]]]:
    """A table: of every model what a step takes of memory, and of seconds on how many GPUs.

    Args:
        counted: of GPT-J-6B, by phase.
    """
    head = ["model, BF16", "weights, GB", "a step beside them, GB", "its tokens, GB", "1 GPU"]
    return [*head, *(f"{n} GPUs" for n in GPUS[1:])], (_row(*model, counted, costs) for model in MODELS.items())


def least_gpus(needed: float) -> int | None:
    """The fewest GPUs of one node, a power of two, that hold so many bytes."""
    return next((n for n in GPUS if n <= ON_A_NODE and needed <= n * USABLE * H200), None)


def _row(name: str, shape: Shape, counted: Mapping[str, Seconds], costs: Mapping[str, Cost]) -> list[str]:
    least = least_gpus(2 * shape.numbers + shape.pass_bytes)  # tokens that do not fit are compressed
    cells = []
    for gpus in GPUS:
        if least is None or gpus < least:
            cells.append("does not fit")
        elif least == 1:
            cells.append(_between(_taken(shape, counted, gpus, costs)))
        else:  # one process, whose GPUs take turns
            cells.append(_between(_taken(shape, counted, 1, costs)) if gpus == least else "no faster")
    held = (2 * shape.numbers, shape.pass_bytes, shape.token_bytes)
    return [name, *(f"{size / GB:.0f}" for size in held), *cells]


def _taken(
    shape: Shape, counted: Mapping[str, Seconds], processes: int, costs: Mapping[str, Cost]
) -> tuple[float, float]:
    """Products and traffic grow with the model, eigenproblems and launches with its matrices, hashing with the MLPs.

    Processes divide all but hashing, and send each other the tokens of their layers.
    """
    grown = {"launches": shape.layers / GPTJ.layers} | dict.fromkeys(HASHING, shape.mlp / GPTJ.mlp)
    grown["eigenproblems"] = shape.sides / (shape.width + shape.inner) / (2 * GPTJ.layers)
    phases = []
    for phase, taken in counted.items():
        shared = 1 if phase == ALONE else processes
        parts = {}
        for part, ends in taken.parts.items():
            factor = grown.get(part, shape.numbers / GPTJ.numbers) / (1 if part in HASHING else shared)
            parts[part] = ends[0] * factor, ends[1] * factor
        phases.append(Seconds(parts))
    sent = shape.token_bytes * (processes - 1) / processes / costs["exchange"].value
    low, high = total(phases)
    return low + sent, high + sent


def _between(ends: Sequence[float]) -> str:
    low, high = (f"{end:.0f}" for end in ends)
    return f"{low} s" if low == high else f"{low} to {high} s"
