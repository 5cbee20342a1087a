"""Of a model on the CPU nothing need be in memory but what is worked on: its weights and new layers lie in files."""

import subprocess
import sys

import pytest
import torch
from mappings import in_a_file
from marks import slow
from tiny import make_model, make_tokenizer
from typer.testing import CliRunner

import lasertri.compression.compress as compression
from lasertri import LasertriError, compress, load_model
from lasertri.cli import app
from lasertri.factored.layer import FactoredLinear

TEXT = " ".join(["yes no a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 20)
MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def compressed(folder, **options):
    model = load_model(folder, device="cpu")
    report = compress(model, make_tokenizer("llama"), text=TEXT, keep=0.6, progress=False, **options)
    return model, report


@linux
@pytest.mark.parametrize(
    ("factors", "dtype"),
    [("plain", torch.bfloat16), slow("plain", torch.float32), slow("whitened", torch.bfloat16)],
)
def test_weights_and_new_layers_lie_in_files_and_are_what_they_would_be_in_memory(tmp_path, factors, dtype):
    folder, scratch = tmp_path / "model", tmp_path / "scratch"
    make_model("llama", dtype=dtype).save_pretrained(folder)
    scratch.mkdir()
    model, report = compressed(folder, factors=factors, scratch=scratch)
    assert report.count > 0
    assert all(in_a_file(parameter) for parameter in model.parameters())
    assert list(scratch.iterdir()) == []
    other, same = compressed(folder, factors=factors)
    assert not any(in_a_file(layer.weight) for layer in other.modules() if isinstance(layer, FactoredLinear))
    assert [m.to_dict() for m in report.matrices] == [m.to_dict() for m in same.matrices]
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_folder_for_new_layers_is_looked_at_first(model, tmp_path):
    with pytest.raises(LasertriError, match="expected a folder for new layers, got 3"):
        compress(model, factors="plain", scratch=3)
    (tmp_path / "file").touch()
    for name, problem in (("nowhere", "No such file or directory"), ("file", "Not a directory")):
        with pytest.raises(LasertriError, match=f"{name}: expected a folder that factors can be written to: {problem}"):
            compress(model, factors="plain", scratch=tmp_path / name)


@pytest.mark.parametrize(("options", "share"), [({}, 0.9), ({"keep": 0.5}, 0.5), ({"rank": 0.5}, 1.0)])
def test_new_layers_take_no_more_room_than_is_asked_for(options, share):
    model = make_model("llama")
    targets = [weight for name, weight in model.named_parameters() if "mlp" in name]
    room = compression.room_for_layers(model, **({"keep": None, "rank": None, "targets": None} | options))
    assert room == int(share * sum(weight.nbytes for weight in targets))
    compress(model, factors="plain", progress=False, **options)
    made = [layer for layer in model.modules() if isinstance(layer, FactoredLinear)]
    assert 0 < sum(parameter.nbytes for layer in made for parameter in layer.parameters()) <= room


def test_what_is_compressed_already_is_said():
    model = make_model("llama")
    compress(model, factors="plain", rank=0.3, progress=False)
    with pytest.raises(LasertriError, match="expected MLP matrices .* and 9 layers that are factors already"):
        compress(model, factors="plain", progress=False)


def test_the_command_has_new_layers_lie_beside_its_output(folder, tmp_path, monkeypatch):
    places, out = [], tmp_path / "new" / "out"
    monkeypatch.setattr(compression, "mapped", lambda layer, place: places.append(place) or layer)
    (tmp_path / "text").write_text(TEXT)
    command = ["compress", folder, "--text", tmp_path / "text", "--keep", "0.6", "--factors", "plain", "-o", out]
    assert CliRunner().invoke(app, [*map(str, command)]).exit_code == 0
    assert set(places) == {tmp_path}


GROWTH = """
import re, sys, threading, time
from pathlib import Path
from typer.testing import CliRunner
from lasertri.cli import app
import lasertri.compression.compress, transformers.models.llama.modeling_llama

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

seen, before = [0], anonymous()

def watch():
    while True:
        seen.append(max(seen.pop(), anonymous()))
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
done = CliRunner().invoke(app, sys.argv[1:])
assert done.exit_code == 0, done.output
print(max(seen) - before)
"""


@linux
@pytest.mark.slow
def test_the_command_takes_less_memory_than_the_model(tmp_path):
    shape = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 28}
    model = make_model("llama", **shape)
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(tmp_path / "model")
    del model
    make_tokenizer("llama").save_pretrained(tmp_path / "model")
    (tmp_path / "text").write_text(TEXT)
    options = ["--text", tmp_path / "text", "--factors", "plain", "--memory-budget", "0.03", "--no-progress"]
    command = [sys.executable, "-c", GROWTH, "compress", tmp_path / "model", "-o", tmp_path / "out", *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout.split()[-1])
    assert growth < size, f"{growth / MIB:.0f} of {size / MIB:.0f} MiB"
