"""How much memory a search may take."""

from types import SimpleNamespace

import pytest
import torch
from tiny import make_model

from lasertri.factors.budget import budget_for
from lasertri.factors.store import FactorStore
from lasertri.model.targets import find_targets

GIB = 1 << 30


def on_devices(*free: int, monkeypatch):
    """A model with a parameter on each of these CUDA devices; torch holds a GiB of each, half of it unused."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index] * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: GIB)
    devices = [torch.device("cuda", index) for index in range(len(free))]
    parameters = [SimpleNamespace(is_cuda=True, device=device) for device in devices]
    return SimpleNamespace(parameters=lambda: parameters)


def test_by_default_it_is_4_gib_or_half_of_what_the_fullest_gpu_has_free(monkeypatch):
    assert budget_for(make_model("gptj")) == 4 * GIB
    assert budget_for(on_devices(59, 19, monkeypatch=monkeypatch)) == 10 * GIB  # of 19 GiB and the one unused


@pytest.mark.parametrize("asked", [1, 7 * GIB])
def test_what_is_asked_for_counts(asked, monkeypatch):
    assert budget_for(on_devices(59, monkeypatch=monkeypatch), asked) == asked


def test_those_that_fit_are_made_together_and_others_left_for_later():
    model = make_model("gptj", n_layer=3)
    targets = find_targets(model)
    store = FactorStore(model, targets, [1], budget=GIB)
    wide, tall = ([t for t in targets if t.role == role] for role in ("fc_in", "fc_out"))
    each = 4 * min(wide[0].shape) ** 2
    store.budget.free = 2 * each + each // 2
    store.prepare([*wide, *tall], 1)
    kept = store.kept_bytes // each
    assert kept == 2
    assert store.budget.free < each
