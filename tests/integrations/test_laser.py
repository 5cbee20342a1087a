"""LASER's `do_low_rank`, exact and factored once, where LASER's modules look it up."""

import copy
import sys

import pytest
import torch
from torch import nn

from lasertri import LasertriError
from lasertri.integrations import laser

RATES = (1, 2, 4, 6, 8, 9, 9.5, 9.9, 9.95)


@pytest.fixture(autouse=True)
def no_factors_from_before():
    laser._factors.cache_clear()


def truncated(weight, rank):
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(67, 131), (131, 67)])
def test_every_rate_gives_the_exact_truncation_at_lasers_rank(dtype, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for rate in RATES:
        k = (10 - rate) * 0.1
        reduced = laser.do_low_rank(weight, k)
        assert isinstance(reduced, nn.Parameter)
        assert reduced.dtype == dtype
        expected = truncated(weight, int(67 * k))
        torch.testing.assert_close(reduced.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_the_ranks_are_those_of_lasers_floating_point():
    weight = torch.randn(768, 800, generator=torch.Generator().manual_seed(0))
    ranks = [int(torch.linalg.matrix_rank(laser.do_low_rank(weight, (10 - r) * 0.1), rtol=1e-5)) for r in RATES[3:]]
    assert ranks == [307, 153, 76, 38, 7, 3]


def test_nine_rates_on_copies_of_a_model_cost_one_factorisation(monkeypatch):
    calls, factor = [], laser.block_svd
    monkeypatch.setattr(laser, "block_svd", lambda weight: calls.append(1) or factor(weight))
    layer = nn.Linear(9, 13)
    for rate in RATES:
        laser.do_low_rank(copy.deepcopy(layer).weight, (10 - rate) * 0.1)
    assert len(calls) == 1
    with torch.no_grad():
        layer.weight[0, 0] += 1
    laser.do_low_rank(layer.weight, 0.5)
    laser.do_low_rank(layer.weight.bfloat16(), 0.5)
    laser.do_low_rank(layer.weight.detach().mT, 0.5)
    assert len(calls) == 4


def test_the_callers_weight_is_left_alone():
    weight = torch.eye(4)
    laser.do_low_rank(weight, 1.0).data.zero_()
    assert torch.equal(weight, torch.eye(4))


@pytest.mark.parametrize(("weight", "k"), [(torch.ones(4), 0.5), (torch.ones(2, 3, 4), 0.5), (torch.ones(3, 4), 1.5)])
def test_what_cannot_be_reduced_is_said(weight, k):
    with pytest.raises(LasertriError, match="expected"):
        laser.do_low_rank(weight, k)


def test_patch_rebinds_the_function_in_every_family(tmp_path, monkeypatch):
    package = tmp_path / "laser"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "matrix_utils.py").write_text("def do_low_rank(weight, k, debug=False, niter=2): return 'theirs'\n")
    (package / "gptj_laser.py").write_text("from laser.matrix_utils import do_low_rank\n")
    (package / "dt_laser.py").write_text("import a_simulator_that_is_not_installed\n")
    (package / "other.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert laser.patch() == ["laser.gptj_laser", "laser.matrix_utils"]
        assert sys.modules["laser.gptj_laser"].do_low_rank is laser.do_low_rank
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "laser"]:
            del sys.modules[name]


def test_patch_without_laser_says_what_to_do():
    with pytest.raises(LasertriError, match="src` folder on sys.path"):
        laser.patch()
