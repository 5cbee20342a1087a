"""A folder in which every block of the pages runs: where they name a model of the hub, there is a tiny one."""

from __future__ import annotations

import json
from pathlib import Path

from subwords import byte_level
from tiny import make_model

MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-0.6B")
FACTS = {"The mother tongue of {} is": "French", "The capital of {} is": "Rome"}
LASER_RMT = "class ModelModifier:\n    pass\n"  # what of laserRMT and of LASER the pages import
TRACKIO = "def init(project, config):\n    pass\n\n\ndef log(metrics):\n    [x + 0.0 for x in metrics.values()]\n\n\n"
LASER = "def do_low_rank(weight, k):\n    raise AssertionError('not rebound')\n"


def furnish(folder: Path) -> None:
    """Models, the facts of the first example, rows with fields of other names."""
    for name in MODELS:
        make_model("llama", vocab_size=400, pad_token_id=0, max_position_embeddings=256).save_pretrained(folder / name)
        byte_level(pad_token="!").save_pretrained(folder / name)
    names = [f"N{number}" for number in range(24)]
    facts = [{"prompt": asked.format(n), "attribute": answer} for n in names for asked, answer in FACTS.items()]
    rows = [{"question": f"Is {n} a name?", "options": ["yes", "no"], "answer": "yes"} for n in names * 2]
    (folder / "facts").mkdir()
    (folder / "facts/known_1000.json").write_text(json.dumps(facts))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rmt_laser.py").write_text(LASER_RMT)
    (folder / "trackio.py").write_text(f"{TRACKIO}def finish():\n    pass\n")
    (folder / "laser").mkdir()
    (folder / "laser/__init__.py").write_text("")
    (folder / "laser/matrix_utils.py").write_text(LASER)
