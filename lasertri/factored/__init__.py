"""Weights kept as factors: the layer, which blocks pay, its checkpoints. May import `ops` and `support`.

Importing it teaches transformers to read these: `AutoModelForCausalLM.from_pretrained(folder)`.
"""

from lasertri.factored.checkpoint import FactoredConfig, FactoredQuantizer

__all__ = ["FactoredConfig", "FactoredQuantizer"]
