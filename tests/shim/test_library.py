"""`csrc/cuda` executed: shapes, dtypes, layouts, streams and schedules, and every call that can fail."""

import pytest
from marks import slow
from spectra import gapped

from shim import cases, failures
from shim.run import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_library(case, libraries):
    case(libraries)


@pytest.mark.slow
def test_768_of_all_combinations(libraries):
    for case in cases.cases(768):
        cases.check(libraries, case)


@pytest.mark.slow
def test_every_call_fails_once_with_each_of_its_codes(libraries):
    for failure in failures.failures(libraries, thorough=True):
        failures.check(failure)


@pytest.mark.parametrize("solver", [slow("batched"), slow("looped")])
def test_more_blocks_than_cusolver_takes_at_once(solver, libraries):
    shim = getattr(libraries, solver)
    shim.reset()
    blocks = gapped(1, 1, 2).expand(70_000, 1, 2)
    cases.assert_factors(cases.factored(shim, blocks, workspace=1 << 40), blocks, True)
    assert shim.calls("cusolverDnXsyevBatched") == (3 if solver == "batched" else 0)
