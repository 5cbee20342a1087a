"""How commands load a model: what is said meanwhile, and what where the hub does not answer."""

import logging
from ssl import SSLError
from urllib.error import HTTPError, URLError

import pytest
from huggingface_hub import constants

from lasertri import LasertriError
from lasertri.cli.loading import Loading, _go_offline_where_the_hub_is_silent


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)


def test_loading_is_announced(folder, caplog):
    with caplog.at_level(logging.INFO):
        Loading().load(str(folder))
    assert caplog.messages[0] == f"reading the model {str(folder)!r}"


@pytest.mark.parametrize("error", [TimeoutError("timed out"), URLError("timed out")])
def test_a_hub_that_does_not_answer_is_said_once_and_not_waited_for(monkeypatch, caplog, error):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lasertri.cli.loading.urlopen", lambda *_, **__: raised(error))
    with pytest.raises(LasertriError, match="expected a hub id or a folder with a Hugging Face model, got 'no/such'"):
        Loading().load("no/such")
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("https://huggingface.co does not answer (")
    assert "timed out" in warning
    assert constants.HF_HUB_OFFLINE


def test_the_hub_is_not_asked_for_a_folder(monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lasertri.cli.loading.urlopen", lambda *_, **__: raised(TimeoutError("timed out")))
    with pytest.raises(LasertriError, match=r"found no folder './no'"):
        Loading().load("./no")
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("error", [HTTPError("u", 403, "no", None, None), URLError(SSLError("certificate"))])
def test_one_that_answers_anyhow_is_asked(monkeypatch, error):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lasertri.cli.loading.urlopen", lambda *_, **__: raised(error))
    _go_offline_where_the_hub_is_silent()
    assert not constants.HF_HUB_OFFLINE


def raised(error):
    raise error
