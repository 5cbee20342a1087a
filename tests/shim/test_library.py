"""`csrc/cuda` executed: shapes, dtypes, layouts, streams and schedules, and every call that can fail."""

import pytest
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


@pytest.mark.slow
def test_more_blocks_than_cusolver_takes_at_once(libraries):
    libraries.batched.reset()
    blocks = gapped(1, 1, 2).expand(33_000, 1, 2)
    cases.assert_factors(cases.factored(libraries.batched, blocks, workspace=1 << 40), blocks, True)
    assert libraries.batched.calls("cusolverDnXsyevBatched") == 2
