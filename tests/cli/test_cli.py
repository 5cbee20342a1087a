"""The command line as its users meet it: output, exit codes, messages."""

import functools
import itertools
import json
import os
import re
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time

import pytest
import safetensors.torch
import torch
from killing import Killed, Killer, without_times
from marks import slow
from tiny import make_samples
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from lasertri import Sample
from lasertri.cli import app
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples as recall_samples
from lasertri.result.adaptation import REPORT_NAME, SUMMARY_NAME

SMALL = ["--blocks", "1,3", "--ratios", "0.5,0", "-q", "2"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def write(path, samples):
    rows = [{"prompt": s.prompt, "choices": s.choices, "label": s.label, "completion": s.completion} for s in samples]
    path.write_text("".join(json.dumps({k: v for k, v in r.items() if v not in ((), None)}) + "\n" for r in rows))
    return path


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "train.jsonl", make_samples(48))


def test_adapt_writes_one_json_object(folder, data):
    result = run("adapt", folder, "--data", data, *SMALL, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["edit"] is None
    assert {"target", "blocks", "rank", "rho"} <= set(found["rejected"])
    assert 0 < found["p_value"] <= 1
    for name in ("calibration", "held_out"):
        assert set(found[name]["baseline"]) == {
            "accuracy", "balanced_accuracy", "log_loss", "choice_log_loss", "n", "majority_rate", "collapsed"
        }  # fmt: skip
        assert found[name]["edited"] is None
    assert found["held_out"].keys() >= {"interval", "verdict"}
    assert len(found["trials"]) == found["candidates"]["measured"]
    assert found["seconds"] > 0


def test_the_edit_of_one_run_can_be_applied_by_the_next(tmp_path):
    data = write(tmp_path / "train.jsonl", recall_samples(80, seed=21))
    options = ["--blocks", "2", "--ratios", "0.4", "--targets", r"h\.0\.mlp\.fc_in"]
    result = run("adapt", MODEL_DIR, "--data", data, *options, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["edit"]["rho"] == 0.4
    assert f"wrote {tmp_path / 'out'}" in result.stderr
    assert {SUMMARY_NAME, REPORT_NAME} <= {p.name for p in (tmp_path / "out").iterdir()}
    result = run("apply", tmp_path / "out", MODEL_DIR, "-o", tmp_path / "applied")
    assert result.exit_code == 0, result.output
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "applied")]
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        assert ours.equal(theirs)
    measured = [json.loads(run("eval", m, "--data", data, "--json").stdout) for m in (MODEL_DIR, tmp_path / "out")]
    assert measured[1]["accuracy"] > measured[0]["accuracy"] + 0.2
    refused = run("apply", tmp_path / "out", tmp_path / "out", "-o", tmp_path / "again")
    assert refused.exit_code == 1
    assert "has other values" in refused.stderr


STEP = ["--direction", "plain", "--rank", "8", "--targets", "mlp", "--accept", "best"]


def test_an_adapter_is_told_how_to_load_and_measured_beside_its_base(tmp_path):
    data, out = write(tmp_path / "train.jsonl", recall_samples(80, seed=21)), tmp_path / "out"
    result = run("adapt", MODEL_DIR, "--data", data, *STEP, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["edit"]["kind"] == "step"
    assert f'wrote {out}: a LoRA adapter; load it by PeftModel.from_pretrained(base, "{out}")' in result.stderr
    assert f"vLLM: --enable-lora --max-lora-rank 8 --lora-modules task={out}" in result.stderr
    assert run("apply", out, MODEL_DIR, "-o", tmp_path / "merged").exit_code == 0
    places = [(out,), (MODEL_DIR, "--edit", out), (tmp_path / "merged",), (MODEL_DIR,)]
    measured = [json.loads(run("eval", *place, "--data", data, "--json").stdout) for place in places]
    assert measured[0] == measured[1]
    assert measured[2]["log_loss"] == pytest.approx(measured[0]["log_loss"], rel=1e-4)
    assert measured[0]["accuracy"] > measured[3]["accuracy"] + 0.2
    refused = run("apply", out, MODEL_DIR, "-o", tmp_path / "no", "--save", "factored")
    assert (refused.exit_code, "goes with a truncation" in refused.output) == (2, True)
    assert "has other values" in failure("eval", tmp_path / "merged", "--edit", out, "--data", data)


def test_a_merged_step_is_a_checkpoint_with_its_adapter_beside(tmp_path):
    data, out = write(tmp_path / "train.jsonl", recall_samples(80, seed=21)), tmp_path / "out"
    result = run("adapt", MODEL_DIR, "--data", data, *STEP, "--merge", "-o", out)
    assert f'the edited model; load it by AutoModelForCausalLM.from_pretrained("{out}")' in result.stderr
    assert run("apply", out, MODEL_DIR, "-o", tmp_path / "again").exit_code == 0
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "again")]
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        assert ours.equal(theirs)


def test_an_adapter_that_names_no_model_asks_for_one(tmp_path, data):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    message = failure("eval", tmp_path, "--data", data)
    assert f"give the model as MODEL, and --edit {tmp_path}" in message
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere"}')
    assert "found no lasertri_config.json" in failure("eval", tmp_path, "--data", data)


@pytest.mark.parametrize("merge", [[], ["--merge"]])
def test_without_peft_a_step_is_refused_before_the_work(folder, data, tmp_path, monkeypatch, merge):
    monkeypatch.setitem(sys.modules, "peft", None)
    message = failure("adapt", folder, "--data", data, "-o", tmp_path / "out", *merge)
    assert "pip install peft, or look for another kind of edit (edit='shrink')" in message


def test_eval_reads_other_fields(folder, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("q,a\na b,no\nc d,yes\n")
    result = run(
        "eval", folder, "--data", path, "--prompt", r"{q}\ne", "--choices", '["yes", "no"]', "--label", "a", "--json"
    )
    assert json.loads(result.stdout)["n"] == 2


def test_eval_looks_for_answers_in_what_is_written(folder, model, tokenizer, tmp_path):
    prompt = tokenizer("a b", return_tensors="pt")
    *_, written = model.generate(**prompt, max_new_tokens=2, do_sample=False, pad_token_id=tokenizer.pad_token_id)[0]
    path = write(tmp_path / "x.jsonl", [Sample("a b", tokenizer.decode(written)), Sample("c d", "d")])
    for match, accuracy in (("contains", 0.5), ("contains-with-prompt", 1.0)):
        result = run("eval", folder, "--data", path, "--match", match, "--window", "2", "--json")
        assert json.loads(result.stdout)["accuracy"] == accuracy
    result = run("eval", folder, "--data", path, "--match", "contains", "--window", "1", "--json")
    assert json.loads(result.stdout)["accuracy"] == 0.0, "it is the second token that is written"
    assert "window: expected a number" in run("eval", folder, "--data", path, "--match", "contains").stderr


def test_info_names_every_backend_and_what_it_can_do():
    result = run("info", "--json")
    backends = json.loads(result.stdout)["backends"]
    assert list(backends["cpu"]) == ["reference", "gram", "triton", "cuda", "auto"]
    assert backends["cpu"]["reference"] == backends["cpu"]["gram"] == "can run"
    assert backends["cpu"]["auto"] == "takes gram: no other is measurably faster over all shapes"
    assert re.search("can run|TRITON_INTERPRET=1 interprets them", backends["cpu"]["triton"])
    assert re.search("can run|LASERTRI_BUILD_CUDA=1", backends["cpu"]["cuda"])
    assert set(backends["cuda"]) >= {"reference", "gram", "triton", "cuda"}
    assert "torch" in run("info").stdout


def test_info_says_of_each_library_of_the_extension_whether_it_can_be_used():
    extension = json.loads(run("info", "--json").stdout)["extension"]
    assert set(extension) == {"_cpu", "_cuda"}
    for status in extension.values():
        assert re.search("^loads, built with torch 2|was not built|was built without|has no CUDA", status)
    assert f"_cpu: {extension['_cpu']}" in run("info").stdout


@pytest.mark.parametrize("command", [[], ["adapt"], ["apply"], ["compress"], ["eval"], ["info"], ["demo"]])
def test_help(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ratios", "0.5,x"],
        ["--ratios", "1.5"],
        ["--blocks", "0"],
        ["--score", "magic"],
        ["--calibration", "none"],
        ["--calibration", "5"],
        ["--backend", "warp"],
        ["--dtype", "float8"],
        ["--batch-size", "0"],
        ["--memory-budget", "nan"],
        ["--prompt", "no field"],
        ["--match", "contains"],
        ["--tensor-parallel"],  # in one process
        ["--unknown"],
    ],
)
def test_usage_errors_exit_with_2(folder, data, arguments):
    assert run("adapt", folder, "--data", data, *arguments).exit_code == 2


def failure(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    [message] = result.stderr.strip().splitlines()
    return message


def test_all_edits_of_a_run_are_applied_by_the_next(folder, data, tmp_path):
    options = ["--accept", "best", "--max-edits", "2", "--blocks", "1", "--ratios", "0.5,0"]
    found = run("adapt", folder, "--data", data, *options, "-o", tmp_path / "one", "--json")
    assert found.exit_code == 0, found.output
    [further] = json.loads(found.stdout)["further"]
    assert further["edit"] is not None
    again = run("apply", tmp_path / "one", folder, "-o", tmp_path / "two", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["further"] == [further["edit"]]
    one, two = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_bad_data_is_reported_before_a_model_is_loaded(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "choices": ["x", "y"], "label": 2}\n')
    assert "bad.jsonl:1, label" in failure("adapt", "no/such-model", "--data", path)


def test_an_unknown_model_is_one_sentence(tmp_path, data, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "expected a hub id or a folder" in failure("adapt", tmp_path / "absent", "--data", data)
    assert "read and written: " in failure("adapt", "a" * 999, "--data", data)
    (tmp_path / "empty").mkdir()
    assert "expected a hub id or a folder" in failure("eval", tmp_path / "empty", "--data", data)


def test_what_a_folder_lacks_is_said(folder, data):
    (folder / "tokenizer.json").unlink()
    assert "expected a tokenizer beside the model" in failure("eval", folder, "--data", data)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    assert "expected a language model (causal, masked, encoder-decoder), got type 'vit'" in failure(
        "eval", folder, "--data", data
    )


def test_a_truncated_checkpoint_is_one_sentence(folder, data):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors cannot be read (it was cut" in failure("adapt", folder, "--data", data)


def test_a_checkpoint_without_some_weight_is_refused(folder, data):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["transformer.h.1.attn.q_proj.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 are missing, transformer.h.1.attn.q_proj.weight among them" in failure("eval", folder, "--data", data)
    weights["transformer.h.1.attn.q_proj.weight"] = torch.ones(3, 3)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "got transformer.h.1.attn.q_proj.weight as [3, 3] for [16, 16]" in failure("eval", folder, "--data", data)


def test_an_output_that_cannot_be_written_is_found_before_the_work(folder, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("1")
    assert "--overwrite" in failure("adapt", folder, "--data", data, "-o", tmp_path / "out")
    assert "can be written" in failure("adapt", folder, "--data", data, "-o", data / "out")
    assert (tmp_path / "out" / "mine").exists()


def test_a_device_that_is_not_there(folder, data):
    assert "expected a device such as" in failure("eval", folder, "--data", data, "--device", "abacus")
    assert "expected cpu or" in failure("eval", folder, "--data", data, "--device", "meta")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 96 bytes"),
        MemoryError(),
    ],
)
def test_memory_that_is_not_there_is_one_sentence(folder, data, monkeypatch, error):
    def lacking(*_, **__):
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lacking)
    assert "expected memory for all that is asked for, but" in failure("eval", folder, "--data", data)


def test_no_temporary_folder_is_one_sentence(folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    assert "name one with TMPDIR" in failure("adapt", folder, "--data", data)


def test_what_a_terminal_would_obey_is_written_out(folder, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lasertri_config.json").write_text(json.dumps({"kind": "\x1b[31mred"}))
    said = failure("eval", folder, "--data", data, "--edit", tmp_path / "out")
    assert r"got '\x1b[31mred'" in said
    assert r"no \x1b[31mfolder" in failure("eval", tmp_path / "no \x1b[31mfolder", "--data", data)


@pytest.mark.parametrize("kind", ["step", slow("truncate"), slow("shrink")])
def test_a_command_goes_on_where_it_was_killed(folder, data, tmp_path, monkeypatch, caplog, kind):
    monkeypatch.setenv("LASERTRI_CACHE", str(tmp_path / "cache"))
    command = ["adapt", folder, "--data", data, "--edit", kind, "--accept", "best", "--no-progress"]
    killer, going_on = Killer(monkeypatch), "going on where this was stopped"

    def killed(*options):
        """Whether it went on, and how much it wrote; None where it was killed."""
        killer.written = 0
        caplog.clear()
        try:
            result = run(*command, *options)
        except Killed:
            return None
        finally:
            killer.at = None
        assert result.exit_code == 0, result.output
        return going_on in caplog.text, killer.written

    assert killed() == (False, 0)  # without OUT there is nothing to go on to
    went_on, written = killed("-o", tmp_path / "undisturbed")
    assert not went_on
    factors = set(os.listdir(tmp_path / "cache")) if kind != "step" else set()
    for options in ([], ["--no-resume"]):
        killer.at = written // 2
        assert killed("-o", tmp_path / "out") is None
        assert not (tmp_path / "out").exists()
        rest = written if options else written - written // 2
        assert killed("-o", tmp_path / "out", "--overwrite", *options) == (not options, rest)
        figures = [json.loads((tmp_path / name / SUMMARY_NAME).read_text()) for name in ("undisturbed", "out")]
        assert without_times(figures[0]) == without_times(figures[1])
        assert set(os.listdir(tmp_path / "cache")) == factors
        shutil.rmtree(tmp_path / "out")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_interrupt_exits_with_130_and_leaves_no_output(folder, tmp_path):
    prompts = itertools.islice(itertools.product(string.ascii_lowercase, repeat=3), 6000)  # no two rows alike
    samples = [Sample(" ".join(letters), choices=("yes", "no"), label=i % 2) for i, letters in enumerate(prompts)]
    data, long = write(tmp_path / "long.jsonl", samples), ["--calibration", "3000", "--no-race"]
    command = [sys.executable, "-m", "lasertri", "adapt", folder, "--data", data, *long, "-o", tmp_path / "out"]
    # a shell has its background jobs ignore the signal, and what they start
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, preexec_fn=heed)
    seen = b""
    while b"trials" not in seen:  # the first progress bar of the long work
        seen += os.read(process.stderr.fileno(), 4096)
        assert process.poll() is None, seen
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in rest
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]
