"""A layer moved to a file is the layer it was, and leaves nothing behind."""

import sys

import pytest
import torch
from mappings import in_a_file
from safetensors import SafetensorError
from torch import nn

from lasertri.errors import LasertriError
from lasertri.factored import mapped as module
from lasertri.factored.exchange import factored
from lasertri.factored.mapped import mapped


def a_layer(*, bias=True, rank=2, pivot=True):
    torch.manual_seed(0)
    linear = nn.Linear(12, 20, bias=bias).to(torch.bfloat16).requires_grad_(False)
    pairs = [(torch.randn(10, k), torch.randn(k, 12)) for k in (rank, 10)]  # the second does not pay
    return linear, factored(linear, pairs, linear.weight, pivot=pivot)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is mapped")
@pytest.mark.parametrize("options", [{}, {"bias": False, "pivot": False}, {"rank": 0}])
def test_it_is_the_same_layer_and_no_file_has_a_name(tmp_path, options):
    linear, layer = a_layer(**options)
    inputs, before = torch.randn(3, 12).to(torch.bfloat16), {n: t.clone() for n, t in layer.state_dict().items()}
    outputs = layer(inputs)
    assert mapped(layer, tmp_path) is layer
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(layer(inputs), outputs)
    assert layer.bias is linear.bias
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    after = layer.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name])
        assert tensor.numel() == 0 or in_a_file(tensor) == (name != "bias")


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is moved there")
def test_a_disk_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    with pytest.raises(LasertriError, match="nowhere: expected a folder that factors can be written to: No such file"):
        mapped(a_layer()[1], tmp_path / "nowhere")

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(LasertriError, match="written to: I/O error: No space left on device"):
        mapped(a_layer()[1], tmp_path)
    assert list(tmp_path.iterdir()) == []
