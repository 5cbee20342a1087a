"""All cases on a build: `python -m shim.run LIBRARY` stops at the first that fails, with the exit code 3."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shim import cases, failures
from shim.library import Libraries

CASE_FAILED = 3
CASES: tuple[Callable[[Libraries], None], ...] = (
    cases.right_factors,
    cases.lanes_wait_for_the_gram_matrices_and_are_waited_for,
    cases.each_block_s_status_is_its_own,
    cases.squares_beyond_the_type_are_not_finite,
    cases.a_block_that_its_gram_matrix_does_not_resolve_says_so,
    cases.a_solver_that_does_not_converge_says_so,
    cases.batches_stay_within_the_bound,
    cases.fp32_is_fp32_and_not_tf32,
    cases.nothing_in_gives_nothing_out,
    cases.what_the_op_cannot_take_is_refused,
    cases.threads_have_handles_of_their_own,
    cases.large_matrices_are_solved_one_by_one,
    cases.an_older_cusolver_does_too,
    failures.failed_calls,
)


def main() -> None:
    libraries = Libraries.load(Path(sys.argv[1]))
    for case in CASES:
        try:
            case(libraries)
        except (AssertionError, RuntimeError, pytest.fail.Exception) as error:
            print(f"{case.__name__}: {error}", flush=True)
            os._exit(CASE_FAILED)
    for shim in libraries.both:
        shim.write_coverage()
    os._exit(0)  # a sanitizer would watch the destructors of what threads left


if __name__ == "__main__":
    main()
