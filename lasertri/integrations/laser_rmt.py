"""laserRMT's layer reduction on lasertri's factors: one symmetric eigenproblem instead of a full SVD.

ModelModifier.update_model_reduce_layer = lasertri.integrations.laser_rmt.update_model_reduce_layer
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from lasertri.ops import block_svd, reduce_blocks

logger = logging.getLogger(__name__)


def update_model_reduce_layer(self: Any, layer_type: str, layer_number: str | int) -> bool:
    """Keep the singular values above the Marchenko–Pastur threshold in the first layer that matches.

    A method for laserRMT's `ModelModifier`: it uses the class's own threshold and estimate of σ, keeps the original
    weight in `original_weights` and the layer in `modified_layers`, as the method it replaces does.

    Args:
        layer_type, layer_number: texts that the module's name must contain.

    Returns:
        False where the layer was reduced before or none matches.
    """
    layer = f"{layer_type}_{layer_number}"
    if layer in self.modified_layers:
        return False
    for name, module in self.model.named_modules():
        if layer_type not in name or str(layer_number) not in name:
            continue
        factors = block_svd(module.weight)
        sigma = factors.sigma[0]
        threshold = self.marchenko_pastur_threshold(self.estimate_sigma_with_full_iqr(sigma), *module.weight.shape)
        rank = int((sigma > threshold).sum())
        self.original_weights[name] = module.weight.detach().clone()
        module.weight = nn.Parameter(reduce_blocks(module.weight, ranks=rank, factors=factors))
        self.modified_layers.add(layer)
        logger.info("%s keeps %d of %d singular values", name, rank, len(sigma))
        return True
    return False
