"""What was written, and who can read it."""

import json
from types import SimpleNamespace

from tiny import make_model

from lasertri.cli.saved import how_to_load


def test_no_engine_is_named_for_an_adapter_of_experts(tmp_path):
    result = SimpleNamespace(edits=[object()], tokenizer=object(), model=make_model("mixtral"))
    for parameters, said in (
        (None, "vLLM: --enable-lora --max-lora-rank 8"),
        (["experts.down_proj"], "lasertri apply"),
    ):
        config = {"r": 8, "target_parameters": parameters}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        _, engines = how_to_load(result, tmp_path)
        assert said in engines
