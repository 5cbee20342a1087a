"""`--push`: what would be refused is found before the search, and a failed push loses nothing."""

import json

import pytest
from huggingface_hub import ModelCard, constants
from stand_in_hub import stand_in_hub
from tiny import make_samples
from typer.testing import CliRunner

from lasertri.cli import app


@pytest.fixture
def hub(monkeypatch):
    with stand_in_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": s.prompt, "choices": s.choices, "label": s.label} for s in make_samples(48)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "train.jsonl"


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def adapted(folder, data, out, *options):
    step = ["--targets", r"h\.1\.mlp", "--accept", "best", "--no-progress"]
    return run("adapt", folder, "--data", data, *step, "-o", out, "--push", "me/edited", *options)


def refused(folder, data, out, *options):
    """The sentence, once it is known that nothing was loaded."""
    result = adapted(folder, data, out, *options)
    assert (result.exit_code, result.stdout, out.exists()) == (1, "", False)
    said = result.stderr.strip().splitlines()[-1]
    assert "reading the model" not in result.stderr
    return said


def public(folder):
    """What may be pushed: nothing that shows samples."""
    return {path.name for path in folder.iterdir()} - {"adaptation.json", "report.html", "samples.jsonl"}


def test_the_folder_is_pushed_without_samples_and_its_card_names_the_repository(hub, folder, data, tmp_path):
    result = adapted(folder, data, tmp_path / "out", "--private", "--log-samples")
    assert result.exit_code == 0, result.output
    assert f"pushed to {constants.ENDPOINT}/me/edited" in result.stderr
    assert "private" in (hub.made.get("visibility"), *(k for k, given in hub.made.items() if given is True))
    assert hub.files == {name: (tmp_path / "out" / name).read_bytes() for name in public(tmp_path / "out")}
    card = ModelCard(hub.files["README.md"].decode())
    assert 'PeftModel.from_pretrained(base, "me/edited")' in card.text
    assert hub.asked.index("/api/whoami-v2") < hub.asked.index("/api/repos/create")


def test_apply_pushes_over_what_was_pushed_before_where_it_may(hub, folder, data, tmp_path):
    assert adapted(folder, data, tmp_path / "out").exit_code == 0
    command = ["apply", tmp_path / "out", folder, "-o", tmp_path / "applied", "--push", "me/edited"]
    result = run(*command)
    assert result.exit_code == 1
    assert "has 'README.md'; choose another, or overwrite" in result.stderr
    result = run(*command, "--overwrite")
    assert result.exit_code == 0, result.output
    assert hub.files.keys() == public(tmp_path / "applied")
    hub.files = {"mine.txt": b""}
    result = run(*command, "--overwrite")
    assert "expected a repository that lasertri wrote to push to, but me/edited has 'mine.txt'" in result.stderr
    assert hub.files == {"mine.txt": b""}


def test_a_failed_push_leaves_the_folder_and_says_how_to_try_again(hub, folder, data, tmp_path):
    hub.fails, out = True, tmp_path / "out"
    result = adapted(folder, data, out, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["edit"]["kind"] == "step"
    assert "the push to me/edited failed: " in result.stderr
    assert f"{out} is whole; try again by hf upload me/edited {out}" in result.stderr
    assert (out / "adapter_model.safetensors").exists()


def test_without_an_edit_nothing_is_pushed(hub, folder, data, tmp_path):
    result = adapted(folder, data, tmp_path / "out", "--edit", "truncate", "-q", "1", "--accept", "test")
    assert result.exit_code == 0, result.output
    assert "nothing pushed to me/edited: no edit was accepted" in result.stderr
    assert hub.files is None


def test_what_the_hub_would_not_take_is_found_before_the_work(hub, folder, data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for name in ("edited", "me/", "me/a b", "a/b/c"):
        assert f"expected USER/NAME of a repository to push to, got '{name}'" in refused(
            folder, data, out, "--push", name
        )
    hub.role = "read"
    assert "expected a token that may write" in refused(folder, data, out)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "found none; log in by hf auth login, or set HF_TOKEN" in refused(folder, data, out)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it, or leave the push out" in refused(folder, data, out)


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--push", "me/edited"], "--push goes with -o"), (["-o", "out", "--private"], "--private goes with --push")],
)
def test_options_that_go_together(folder, data, options, said):
    result = run("adapt", folder, "--data", data, *options)
    assert (result.exit_code, said in " ".join(result.output.replace("│", " ").split())) == (2, True)


def test_compress_pushes(hub, folder, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(["yes no a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 20))
    options = ["--rank", "0.2", "--text", tmp_path / "text.txt", "--no-progress", "--push", "me/edited"]
    result = run("compress", folder, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert hub.files.keys() == {path.name for path in (tmp_path / "out").iterdir()}
