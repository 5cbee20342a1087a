"""The Hugging Face hub beyond the loading of models: the licence of one, and a folder put there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, constants, get_token, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lasertri.errors import LasertriError
from lasertri.support.output_folder import FILES_NAME
from lasertri.support.shown import reason, shown
from lasertri.version import __version__

HTTPError: Any = HfHubHTTPError.__mro__[1]  # of all errors of the HTTP library that its version has
SECONDS = 4.0  # that the hub has to answer a question whose answer can be done without
KEPT_HERE = (
    "adaptation.json",
    "report.html",
    "samples.jsonl",
)  # they show samples, which may be nobody else's business
LICENCE = ("license", "license_name", "license_link")


def licence(name: str, revision: str | None = None) -> dict[str, str]:
    """What the card of a folder, or of a model on the hub, says of its licence; nothing where that cannot be read."""
    path = (
        Path(name) / "README.md" if Path(name).is_dir() else try_to_load_from_cache(name, "README.md", None, revision)
    )
    said: Any = None
    if isinstance(path, str | Path) and Path(path).is_file():
        try:
            said = metadata_load(path)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
    elif not Path(name).is_dir():
        try:
            card = HfApi().model_info(name, revision=revision, timeout=SECONDS).card_data
            said = None if card is None else card.to_dict()
        except (HTTPError, OSError):  # offline, too
            return {}
    return {field: said[field] for field in LICENCE if isinstance(said.get(field), str)} if said else {}


@dataclass(frozen=True)
class Repository:
    """Where a folder is to go on the hub, once it is known that it can.

    Attributes:
        name: USER/NAME.
        private: whether it is made for its owner alone, where it is made.
        overwrite: whether what lasertri put there before may be replaced; its history stays.

    Raises:
        LasertriError: no such name, no token that may write, no network, or something there that may not be replaced.
    """

    name: str
    private: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.name)
            complete = "/" in self.name
        except HFValidationError:
            complete = False
        if not complete:
            raise LasertriError(f"expected USER/NAME of a repository to push to, got {shown(self.name)}")
        if constants.is_offline_mode():
            raise LasertriError(
                f"expected the hub within reach to push to {self.name}, but HF_HUB_OFFLINE is set; unset it, or leave "
                "the push out"
            )
        if get_token() is None:
            raise LasertriError(
                f"expected a token of the hub to push to {self.name}, found none; log in by hf auth login, or set "
                "HF_TOKEN"
            )
        try:
            role = HfApi().whoami().get("auth", {}).get("accessToken", {}).get("role")
            found = self._files()
        except (HTTPError, OSError) as error:
            raise LasertriError(f"expected the hub to take a push to {self.name}, but: {reason(error)}") from error
        if role == "read":
            raise LasertriError(f"expected a token that may write to push to {self.name}, got one that may read alone")
        if found and (not self.overwrite or FILES_NAME not in found):
            wanted = "a repository that lasertri wrote" if self.overwrite else "a new or empty repository"
            raise LasertriError(
                f"expected {wanted} to push to, but {self.name} has {shown(min(found))}; choose another"
                + ("" if self.overwrite else ", or overwrite")
            )

    def push(self, folder: Path, *, again: str) -> str:
        """Put a folder there, in one commit; returns its address.

        Args:
            again: what to do where it fails.

        Raises:
            LasertriError: the hub did not take it.
        """
        api = HfApi()
        try:
            api.create_repo(self.name, private=self.private or None, exist_ok=True)
            api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                commit_message=f"Upload by lasertri {__version__}",
                delete_patterns="*" if self.overwrite else None,
                ignore_patterns=[*KEPT_HERE],
            )
        except (HTTPError, OSError, ValueError, RuntimeError) as error:  # the last of what sends large files
            raise LasertriError(f"the push to {self.name} failed: {reason(error)}; {again}") from error
        return f"{constants.ENDPOINT}/{self.name}"

    def _files(self) -> set[str]:
        """What is there by now, but for what the hub makes itself."""
        try:
            return {*HfApi().list_repo_files(self.name)} - {".gitattributes"}
        except RepositoryNotFoundError:
            return set()
