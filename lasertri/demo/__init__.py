"""A trained model of 0.4 MB on which removing rank from one matrix has a large, real effect.

`recall` is its task, `train` the script that trained it, `MODEL_DIR` the Hugging Face folder it is in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

MODEL_DIR: Final = Path(__file__).parent / "model"
