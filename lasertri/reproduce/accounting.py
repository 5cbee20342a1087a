"""The paper's own speedups: they count forward passes of one sample, and fit all its figures within 1.1 %.

The paper does not say how it counts. Its speedups say that trials, the unedited model and the test part count, and SVDs
do not; what a gradient weighs; and that clustering scores once for every K.
"""

from __future__ import annotations

from lasertri.search.settings import Settings

GRADIENT = 2.41  # forward and backward pass of one sample, in forward passes

# Three columns fit with 252 trials alone (such as 7 matrices × 9 ρ × 4 K); 5 matrices, as in every other, make 180.
UNEXPLAINED_TRIALS = 252
UNEXPLAINED = {
    ("gptj", "clustering-100-grads-std-eval"),
    ("roberta", "clustering-100-grads-std-eval"),
    ("roberta", "clustering-100-grads-100-eval"),
}


def sample_forwards(settings: Settings, trials: int, size: int) -> float:
    """What a column costs, in forward passes of one sample.

    Args:
        settings: the column's.
        trials: how many candidates are measured.
        size: of the task, N: int(0.2 N) samples are the "standard" ones, the rest is the test part.
    """
    strategy, standard = settings.plan, int(0.2 * size)
    number = {None: 0, "standard": standard, "100": min(settings.calibration, standard)}
    passes = len(settings.blocks) if strategy.several_blocks else 1
    evaluated, scored = number[strategy.evaluation], number[strategy.gradients] * passes
    return (trials + 1) * evaluated + (size - standard) + GRADIENT * scored
