"""laserRMT's layer reduction gives what its own full SVD would."""

import pytest
import torch
from torch import nn

from lasertri.integrations.laser_rmt import update_model_reduce_layer


class Modifier:
    """The part of laserRMT's `ModelModifier` that the method relies on."""

    update_model_reduce_layer = update_model_reduce_layer

    def __init__(self, model):
        self.model, self.original_weights, self.modified_layers = model, {}, set()

    @staticmethod
    def marchenko_pastur_threshold(sigma, n, m):
        beta = min(n, m) / max(n, m)
        return sigma * (1 + beta**0.5)

    @staticmethod
    def estimate_sigma_with_full_iqr(sigma):
        return (torch.quantile(sigma, 0.75) - torch.quantile(sigma, 0.25)) / 1.349


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_below_the_threshold_go_and_the_rest_stay(dtype):
    torch.manual_seed(0)
    modifier = Modifier(nn.ModuleDict({"up_1": nn.Linear(24, 40), "up_3": nn.Linear(24, 40, dtype=dtype)}))
    rows, columns = (torch.linalg.qr(torch.randn(size, 24)).Q for size in (40, 24))
    with torch.no_grad():  # a slope from 2 to 0.01, of which the threshold cuts the lower part
        modifier.model["up_3"].weight.copy_((rows * torch.linspace(2, 0.01, 24)) @ columns.T)
    weight = modifier.model["up_3"].weight.detach().clone()
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    threshold = modifier.marchenko_pastur_threshold(modifier.estimate_sigma_with_full_iqr(sigma), *weight.shape)
    rank = int((sigma > threshold).sum())
    assert 0 < rank < 24
    assert modifier.update_model_reduce_layer("up", 3) is True
    reduced = modifier.model["up_3"].weight
    assert reduced.dtype == dtype
    expected = (u[:, :rank] * sigma[:rank]) @ vh[:rank]
    torch.testing.assert_close(reduced.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-8)
    assert torch.equal(modifier.original_weights["up_3"], weight)
    assert modifier.update_model_reduce_layer("up", 3) is False
    assert modifier.update_model_reduce_layer("down", 3) is False
