"""PEFT's PiSSA start (arXiv 2404.02948) by block Krylov iteration instead of every matrix's full SVD.

LoraLayer.pissa_init = lasertri.integrations.peft.pissa_init  # of peft.tuners.lora.layer
"""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.other import transpose

from lasertri.errors import LasertriError
from lasertri.ops import lowrank_blocks


@torch.no_grad()
def pissa_init(self: Any, adapter_name: str, init_lora_weights: str) -> None:
    """Put a matrix's leading singular components into the adapter, and leave the rest in the weight.

    A method for peft's `LoraLayer`, which `get_peft_model` calls where a `LoraConfig` says
    `init_lora_weights="pissa"`; the adapter, the residual and how peft saves them are as ever.

    Args:
        adapter_name: of the adapter that is started.
        init_lora_weights: "pissa", or "pissa_niter_N", whose N is not used: nothing is drawn here.

    Raises:
        LasertriError: a weight that is not in FP32, FP16 or BF16, or whose matrix is smaller than the rank.
    """
    layer = self.get_base_layer()
    weight, rank, scaling = layer.weight, self.r[adapter_name], self.scaling[adapter_name]
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise LasertriError(f"expected a weight in float32, float16 or bfloat16 for PiSSA, got {weight.dtype}")
    matrix = transpose(weight.data, self.fan_in_fan_out)
    if rank > min(matrix.shape):
        raise LasertriError(
            f"expected r of at most {min(matrix.shape)} for a matrix {list(matrix.shape)}, got r={rank}; lower it, or "
            "give this layer its own in rank_pattern"
        )
    found = lowrank_blocks(matrix, rank=rank, precision="float32")
    # in the weight's dtype, which peft rounds them to: what they lack then stays in the weight
    left, right = ((side / scaling**0.5).to(weight.dtype) for side in (found.left, found.right[0]))
    self.lora_A[adapter_name].weight.data = right.contiguous()
    self.lora_B[adapter_name].weight.data = left.contiguous()
    residual = matrix.float() - scaling * left.float() @ right.float()
    layer.weight.data = transpose(residual, self.fan_in_fan_out).to(weight.dtype).contiguous()
