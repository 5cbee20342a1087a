"""LASER's `do_low_rank`, exact and factored once, where LASER's modules look it up."""

import copy
import importlib
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


@pytest.mark.parametrize(
    ("weight", "k"),
    [
        (torch.ones(4), 0.5),
        (torch.ones(2, 3, 4), 0.5),
        (torch.ones(3, 4), 1.5),
        (torch.ones(3, 4), [0.5]),
        (torch.ones(3, 4), True),
        (torch.eye(3).to_sparse(), 0.5),
        (None, 0.5),
    ],
)
def test_what_cannot_be_reduced_is_said(weight, k):
    with pytest.raises(LasertriError, match="expected"):
        laser.do_low_rank(weight, k)


STAND_IN = {  # the layout of LASER's package: a wrapper, one module for each family, one of matrices
    "__init__.py": "",
    "matrix_utils.py": """
def do_low_rank(weight, k, debug=False, niter=2):
    raise AssertionError("LASER's own function was called")
""",
    "abstract_laser.py": """
class AbstractLaser:
    @staticmethod
    def get_parameter(model, name):
        return model.get_parameter(name)

    @staticmethod
    def update_model(model, name, params):
        path, leaf = name.rsplit(".", 1)
        setattr(model.get_submodule(path), leaf, params)
""",
    "gptj_laser.py": """
import copy
from laser.abstract_laser import AbstractLaser
from laser.matrix_utils import do_low_rank

class GPTJLaser(AbstractLaser):
    @staticmethod
    def convert_name(name):
        return f"mlp.{name}.weight"

    @staticmethod
    def get_edited_model(model, lname, lnum, rate, intervention="rank-reduction", logger=None, in_place=True):
        edited = model if in_place else copy.deepcopy(model)
        name = f"transformer.h.{lnum}.{GPTJLaser.convert_name(lname)}"
        weight = GPTJLaser.get_parameter(edited, name)
        GPTJLaser.update_model(edited, name, do_low_rank(weight, (10 - rate) * 0.1, debug=False, niter=2))
        return edited
""",
    "LaserWrapper.py": """
from laser.gptj_laser import GPTJLaser

class LaserWrapper:
    @staticmethod
    def get_edited_model(model, lname, lnum, rate, intervention="rank-reduction", logger=None, in_place=True):
        assert type(model).__name__ == "GPTJForCausalLM"
        return GPTJLaser.get_edited_model(model, lname, lnum, rate, intervention, logger, in_place)
""",
    "dt_laser.py": "import a_simulator_that_is_not_installed\n",
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "laser").mkdir()
    for name, text in STAND_IN.items():
        (tmp_path / "laser" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [n for n in sys.modules if n.split(".")[0] == "laser"]:
        del sys.modules[name]


def test_patch_rebinds_the_function_in_every_family(stand_in):
    assert laser.patch() == ["laser.gptj_laser", "laser.matrix_utils"]
    assert sys.modules["laser.gptj_laser"].do_low_rank is laser.do_low_rank


def test_lasers_own_call_sites_run_on_it_for_nine_rates_and_one_factorisation(stand_in, model, monkeypatch):
    calls, factor = [], laser.block_svd
    monkeypatch.setattr(laser, "block_svd", lambda weight: calls.append(1) or factor(weight))
    laser.patch()
    wrapper = importlib.import_module("laser.LaserWrapper").LaserWrapper
    original = model.transformer.h[1].mlp.fc_in.weight.detach().clone()
    for rate in RATES:
        edited = wrapper.get_edited_model(model, "fc_in", 1, rate, in_place=False)
        reduced = edited.transformer.h[1].mlp.fc_in.weight
        expected = truncated(original, int(min(original.shape) * ((10 - rate) * 0.1)))
        torch.testing.assert_close(reduced.double(), expected, rtol=1e-6, atol=1e-6)
        assert edited(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    assert len(calls) == 1
    assert torch.equal(model.transformer.h[1].mlp.fc_in.weight, original)


def test_patch_without_laser_says_what_to_do():
    with pytest.raises(LasertriError, match="src` folder on sys.path"):
        laser.patch()
