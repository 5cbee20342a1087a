"""`csrc/cuda` executed: shapes, dtypes, layouts, streams and schedules, and every call that can fail."""

import pytest
import torch
from marks import slow
from shim import cases
from shim.cases import ALL_AT_ONCE, CASES, assert_factors, factored
from spectra import gapped


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_library(case, libraries):
    case(libraries)


@pytest.mark.slow
def test_768_of_all_combinations(libraries):
    for case in cases.cases(768):
        cases.check(libraries, case)


@pytest.mark.slow
def test_every_call_fails_once_with_each_of_its_codes(libraries):
    for plan, fails in cases.failures(libraries, thorough=True):
        try:
            fails()
        except AssertionError as error:
            raise AssertionError(plan) from error


@pytest.mark.parametrize("solver", [slow("batched"), slow("looped")])
def test_more_blocks_than_cusolver_takes_at_once(solver, libraries):
    shim = getattr(libraries, solver)
    shim.reset()
    blocks = gapped(1, 1, 2).expand(70_000, 1, 2)
    assert_factors(factored(shim, blocks, workspace=1 << 40), blocks, True)
    assert shim.calls("cusolverDnXsyevBatched") == (3 if solver == "batched" else 0)


def test_a_block_larger_than_the_bound_is_still_factored(libraries):
    libraries.batched.reset()
    blocks = gapped(2, 40, 50, dtype=torch.bfloat16)
    assert_factors(factored(libraries.batched, blocks, workspace=1000), blocks, True)
    assert_factors(factored(libraries.batched, blocks, workspace=ALL_AT_ONCE), blocks, True)
