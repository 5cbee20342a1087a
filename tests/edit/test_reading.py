"""What an edit's files say is looked at even where their checksum is right: whoever wrote them could write that too."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from stepping import a_step
from tiny import make_model

from lasertri import Edit, LasertriError
from lasertri.edit.candidate import Candidate
from lasertri.edit.edit import CONFIG_NAME, FACTORS_NAME, write_config
from lasertri.edit.shrink import Shrink
from lasertri.edit.truncation import Truncation
from lasertri.factors.store import FactorStore
from lasertri.model.targets import find_linear_layers, find_targets

PREFIX = "base_model.model.transformer.h.1.mlp.fc_in.lora_"
SLICED = "transformer.h.1.mlp.fc_in"


def written(tmp_path: Path, *, kind: str = "truncate") -> Path:
    """A sound edit's folder."""
    model = make_model("gptj")
    target = find_targets(model, SLICED)[0]
    if kind == "step":
        a_step(model, "gptj", rank=4).save(tmp_path)
    elif kind == "shrink":
        targets = find_linear_layers(model, SLICED)
        Shrink(1.0, {target: torch.zeros(3, 14) for target in targets}).known_by(model).save(tmp_path)
    else:
        candidate = Candidate(target, 3, 0.25, clustered=kind == "clustered")
        Truncation.build(candidate, model, FactorStore(model, [target], [3], budget=1 << 30)).save(tmp_path)
    return tmp_path


def signed(folder: Path, *, fields: dict | None = None, tensors: dict | None = None) -> None:
    """Change what an edit says, with a checksum for it; a tensor that is None is left out."""
    path = folder / (FACTORS_NAME if (folder / FACTORS_NAME).exists() else "adapter_model.safetensors")
    changed = safetensors.torch.load_file(path) | (tensors or {})
    safetensors.torch.save_file({k: t.contiguous() for k, t in changed.items() if t is not None}, path)
    config = json.loads((folder / CONFIG_NAME).read_text()) | (fields or {})
    config.pop("sha256")
    with suppress(ValueError):
        write_config(folder / CONFIG_NAME, config, path)


def test_what_is_sound_is_read_again(tmp_path):
    for kind in ("truncate", "clustered", "step", "shrink"):
        folder = tmp_path / kind
        written(folder, kind=kind)
        signed(folder)
        Edit.load(folder).apply(make_model("gptj"))


ORDER = torch.arange(40)
FACTORS = [
    ("truncate", "left.1", torch.full((13, 3), torch.nan), "expected finite values, got NaN or Inf in left.1"),
    ("truncate", "right.2", torch.full((3, 16), torch.inf), "got NaN or Inf in right.2"),
    ("truncate", "right.2", None, "two factors of 3 blocks, got 5 tensors"),
    ("truncate", "right.3", torch.ones(3, 16), "two factors of 3 blocks, got 7 tensors"),
    ("truncate", "left.1", torch.ones(13, 5), r"left.1 \[13, 3\] in torch.float32, got \[13, 5\] in torch.float32"),
    ("truncate", "left.0", torch.ones(()), r"left.0 \[14, 3\] .*got \[\] in"),
    ("truncate", "right.0", torch.ones(3, 16).half(), r"right.0 \[3, 16\] in torch.float32, got .*torch.float16"),
    ("truncate", "right.0", torch.ones(3, 16).long(), "got .*torch.int64"),
    ("clustered", "order", ORDER.clamp(max=38), "expected `order` to be a permutation of 40 rows"),
    ("clustered", "order", ORDER + 1, "expected `order` to be a permutation of 40 rows"),
    ("clustered", "order", ORDER.float(), r"order \[40\] in torch.int64, got \[40\] in torch.float32"),
    ("clustered", "order", ORDER[:9], r"order \[40\] in torch.int64, got \[9\]"),
    ("clustered", "order", None, "two factors of 3 blocks, got 6 tensors"),
    ("clustered", "left.0", torch.ones(0, 3), "every block needs a row|permutation of .* rows"),
    ("step", PREFIX + "A.weight", torch.full((8, 16), torch.nan), "NaN or Inf in .*fc_in.lora_A.weight"),
    ("step", PREFIX + "A.weight", None, r"fc_in.lora_A.weight \[1, 16\] in torch.float32, got none"),
    ("step", PREFIX + "B.weight", torch.ones(40, 7), r"lora_B.weight \[40, 8\] .*got \[40, 7\]"),
    ("step", PREFIX + "A.weight", torch.ones(8, 15), r"lora_A.weight \[8, 16\] .*got \[8, 15\]"),
    ("shrink", SLICED, torch.full((3, 14), torch.nan), f"NaN or Inf in {SLICED}"),
    ("shrink", SLICED, torch.zeros(3, 15), r"fc_in \[3, 14\] .*got \[3, 15\]"),
    ("shrink", SLICED, torch.zeros(41, 16), r"fc_in \[1, 16\] .*got \[41, 16\]"),
    ("shrink", SLICED, None, r"fc_in \[1, 16\] in torch.float32, got none"),
]


@pytest.mark.parametrize(("kind", "name", "tensor", "message"), FACTORS)
def test_tensors_that_an_edit_cannot_have_are_refused(tmp_path, kind, name, tensor, message):
    signed(written(tmp_path, kind=kind), tensors={name: tensor})
    with pytest.raises(LasertriError, match=message) as refused:
        Edit.load(tmp_path)
    assert "safetensors: " in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("truncate", {"blocks": True}),
        ("truncate", {"blocks": 0}),
        ("truncate", {"blocks": 41}),
        ("truncate", {"blocks": 2.0}),
        ("truncate", {"ratio": 1.5}),
        ("truncate", {"ratio": float("nan")}),
        ("truncate", {"ratio": "0.25"}),
        ("truncate", {"clustered": 1}),
        ("truncate", {"compat": True}),
        ("truncate", {"weight_dtype": "int8"}),
        ("truncate", {"weight_sha256": None}),
        ("truncate", {"base_model": 5}),
        ("truncate", {"base_revision": ["main"]}),
        ("truncate", {"target": []}),
        ("step", {"targets": []}),
        ("step", {"targets": 7}),
        ("step", {"origin": None}),
        ("step", {"rank": 0}),
        ("step", {"size": float("inf")}),
        ("step", {"direction": "\x1b[31mred"}),
        ("shrink", {"size": None}),
        ("shrink", {"origin": {}}),
    ],
    ids=str,
)
def test_fields_that_an_edit_cannot_have_are_refused(tmp_path, kind, fields):
    signed(written(tmp_path, kind=kind), fields=fields)
    with pytest.raises(LasertriError, match=f"{CONFIG_NAME}: expected the fields of an edit, got .*copy it again"):
        Edit.load(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [40]},
        {"shape": [40, 0]},
        {"shape": [-40, 16]},
        {"shape": [40.0, 16]},
        {"shape": None},
        {"expert": -1},
        {"expert": False},
        {"rows": [0, 39]},
        {"rows": [-40, 0]},
        {"layer": "1"},
        {"transposed": 0},
        {"name": 5},
        {"name": "a\x1b]0;title\x07.weight"},
        {"role": "two\nlines"},
        {"role": "long" * 99},
        {"more": 1},
    ],
    ids=str,
)
def test_a_target_that_no_model_can_have_is_refused(tmp_path, fields):
    folder = written(tmp_path)
    target = json.loads((folder / CONFIG_NAME).read_text())["target"]
    signed(folder, fields={"target": target | fields})
    with pytest.raises(LasertriError, match="expected the fields of an edit, got") as refused:
        Edit.load(tmp_path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["transformer.h.1.mlp.fc_in.bias", "transformer.h", "", "lm_head.weight.weight"])
@pytest.mark.parametrize("kind", ["truncate", "shrink"])
def test_a_target_that_this_model_does_not_have_is_refused_when_it_is_applied(tmp_path, kind, name):
    folder = written(tmp_path, kind=kind)
    config = json.loads((folder / CONFIG_NAME).read_text())
    if kind == "truncate":
        signed(folder, fields={"target": config["target"] | {"name": name}})
    else:
        renamed = config["targets"][0] | {"name": name}
        signed(folder, fields={"targets": [renamed]}, tensors={name.removesuffix(".weight"): torch.zeros(3, 14)})
    with pytest.raises(LasertriError, match="expected (a model with|.* as|the weights)"):
        Edit.load(tmp_path).apply(make_model("gptj"))
