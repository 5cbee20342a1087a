"""The model that an edit of many layers was made of, and how to know it again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lasertri.edit.reading import field_of
from lasertri.errors import LasertriError
from lasertri.factored.layer import Linear
from lasertri.model.files import changed_since
from lasertri.model.parallel import dealt, here, in_all_parts, is_sharded, whole
from lasertri.model.targets import Target, has_experts
from lasertri.support.checksum import content_key, weight_sha256
from lasertri.support.sharing import everyones
from lasertri.support.shown import shown

logger = logging.getLogger(__name__)

THREADS = 8  # that sum up weights, each with a copy of one in the host's memory
AHEAD = {"cuda"}  # devices that work while the host sums up; a CPU would work for nothing where no edit is accepted

# layers that peft, in a model whose experts share parameters, takes for experts of an older checkpoint
OLDER_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


@dataclass(frozen=True)
class Origin:
    """Where an edit is at home.

    Attributes:
        base, revision: where the model came from; empty where that is not known, or the model is another by now.
        modules: names that end the paths of the edited layers and of no others; empty where there are none such.
        parameters: of every weight that peft is given by its own path, not its layer's, how many matrices it holds, and
            whether peft takes them for stored as [inputs, outputs].
        sha256: `weight_sha256` of every layer's weight; empty of a quantised one, which its library may store otherwise
            once it has run. It is slow, and a search asks several times: what was found to have it is known again by
            its `content_key`.
    """

    base: str = ""
    revision: str | None = None
    modules: tuple[str, ...] = ()
    parameters: Mapping[str, tuple[int, bool]] = field(default_factory=dict)
    sha256: Mapping[Target, str] = field(default_factory=dict, repr=False)
    _known: dict[Target, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        targets: Iterable[Target],
        *,
        base: str | None = None,
        checksums: Mapping[Target, str] | None = None,
    ) -> Self:
        """Look at a model's layers.

        Args:
            base: where it came from, if that need not be found out.
            checksums: those that `checksums_ahead` gave of these layers or of more.
        """
        chosen, config = list(targets), getattr(model, "config", None)
        parameters = as_parameters(chosen, model)
        stored = _stored(model, chosen)
        checksums = checksums or _checksums(stored)
        found = cls(
            _base(model) if base is None else base,
            getattr(config, "_commit_hash", None),
            _endings({target.module for target in chosen if target.name not in parameters}, model),
            parameters,
            {target: checksums[target] if target in stored else "" for target in chosen},
        )
        found._known.update({target: content_key(target.part(here(own))) for target, own in stored.items()})
        return found

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], targets: Sequence[Target]) -> Self:
        """What `to_dict` gave, for targets in the same order.

        Raises:
            KeyError, TypeError, ValueError: it is nothing of the kind.
        """
        sha256, modules, parameters = field_of(fields, "sha256", list), field_of(fields, "modules", list), {}
        for name, stored in field_of(fields, "parameters", dict).items():
            count, transposed = stored
            if (type(count), type(transposed)) != (int, bool) or count < 1:
                raise ValueError(f"the parameter {shown(stored)}")
            parameters[name] = count, transposed
        if not all(isinstance(text, str) for text in (*sha256, *modules)):
            raise ValueError(f"checksums and modules {shown([sha256, modules])}")
        checksums = dict(zip(targets, sha256, strict=True)) if sha256 else {}
        base, revision = field_of(fields, "base_model", str), field_of(fields, "base_revision", str, NoneType)
        return cls(base, revision, tuple(modules), parameters, checksums)

    def to_dict(self) -> dict[str, Any]:
        return {
            "base_model": self.base,
            "base_revision": self.revision,
            "modules": list(self.modules),
            "parameters": {name: list(stored) for name, stored in self.parameters.items()},
            "sha256": list(self.sha256.values()),
        }

    def require(self, model: nn.Module) -> None:
        """Check that a model has these layers, with these weights.

        Raises:
            LasertriError: it does not.
        """
        for target, checksum in self.sha256.items():
            try:
                quantised = target.is_quantised(model)
                shards = None if quantised else target.shards(model)
                shape: tuple[int, ...]
                if quantised or shards is not None:
                    shape = target.whole_shape(model)
                else:
                    shape = tuple(target.view(target.parameter(model)).shape)
            except (AttributeError, IndexError, RuntimeError) as error:  # no such parameter, or no matrix
                raise LasertriError(f"expected a model with {target}, a target of the edit, but it has none") from error
            origin = f" ({shown(self.base)})" if self.base else ""
            if not checksum and not quantised:
                raise LasertriError(
                    f"expected the model quantised as it was when the step was made{origin}, but {target} is not; "
                    "load it from Python as it was then, as the model card shows"
                )
            if checksum:
                target.require_plain(model, sharded=True)
            if shape != target.shape or not (quantised or self._has(target, model, checksum)):
                raise LasertriError(
                    f"expected the weights that the edit was made of{origin}, but {target} of this model has other "
                    "values or another dtype; apply the edit to its own base, once"
                )

    def _has(self, target: Target, model: nn.Module, checksum: str) -> bool:
        """Whether a weight has this checksum."""
        parameter = target.parameter(model)
        key = content_key(target.part(here(parameter)))
        if not in_all_parts(parameter, self._known.get(target) == key):
            if weight_sha256(target.part(whole(parameter))) != checksum:
                return False
            self._known[target] = key
        return True


@contextmanager
def checksums_ahead(model: nn.Module, targets: Iterable[Target]) -> Iterator[Mapping[Target, str]]:
    """Within, threads sum up a GPU's weights, which must stay as they are; after it the checksums are there.

    There are none where the weights are not on one, or in parts, which processes would have to gather together.
    """
    stored, found = _stored(model, targets), dict[Target, str]()
    if not all(parameter.device.type in AHEAD and not is_sharded(parameter) for parameter in stored.values()):
        yield found
        return
    streams = {device: _stream_aside(device) for device in {parameter.device for parameter in stored.values()}}

    def summed(target: Target) -> str:
        with torch.cuda.stream(streams[stored[target].device]):
            return weight_sha256(target.part(stored[target]))

    pool = ThreadPoolExecutor(THREADS)
    try:
        checksums = {target: pool.submit(summed, target) for target in stored}
        yield found
        found.update((target, checksum.result()) for target, checksum in checksums.items())
    finally:
        pool.shutdown(cancel_futures=True)


def _stream_aside(device: torch.device) -> torch.cuda.Stream | None:
    """Of a GPU a stream that waits for the work it has so far, and for no later one."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _stored(model: nn.Module, targets: Iterable[Target]) -> dict[Target, Tensor]:
    """What holds each target that has a checksum."""
    return {target: target.parameter(model) for target in targets if not target.is_quantised(model)}


def _checksums(stored: Mapping[Target, Tensor]) -> dict[Target, str]:
    """`weight_sha256` of each."""
    if any(map(is_sharded, stored.values())):
        return dict(zip(stored, dealt(list(stored.values()), weight_sha256), strict=True))
    weights = [target.part(parameter) for target, parameter in stored.items()]
    with ThreadPoolExecutor(THREADS) as pool:  # hashlib lets the others run meanwhile
        return dict(zip(stored, pool.map(weight_sha256, weights), strict=True))


def as_parameters(targets: Sequence[Target], model: nn.Module) -> dict[str, tuple[int, bool]]:
    """See `Origin.parameters`; in the model's order, in which peft wraps them.

    Besides experts these are layers that peft would take for some, and `Conv1D`, whose `fan_in_fan_out` is not for
    parameters.
    """
    if not has_experts(model):
        return {}
    chosen = {
        target.name: target
        for target in targets
        if target.expert is not None or target.transposed or target.module.rpartition(".")[2] in OLDER_EXPERTS
    }
    return {
        name: (len(parameter) if parameter.dim() == 3 else 1, transposed)
        for name, parameter in model.named_parameters()
        if name in chosen
        for transposed in [bool(getattr(model.get_submodule(chosen[name].module), "is_transposed", False))]
    }


def _base(model: nn.Module) -> str:
    """Where the model came from; empty where it was changed since, of which a warning tells."""
    config = getattr(model, "config", None)
    base: str = getattr(config, "_name_or_path", "")
    try:
        changed = changed_since(model, base, getattr(config, "_commit_hash", None))
    except (LasertriError, OSError, SafetensorError):  # of files that were changed since they were loaded
        changed = "what can be read"
    changed = next((found for found in everyones(changed) if found is not None), None)  # in another process's part
    if changed is None:
        return base
    logger.warning(
        "%s of the model is not what %s has: an adapter will not name its base; save the model, which is that base",
        changed,
        base,
    )
    return ""


def _endings(paths: set[str], model: nn.Module) -> tuple[str, ...]:
    """The last names of these modules, if no other module's path ends in one."""
    names = {path.rpartition(".")[2] for path in paths}
    alike = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in names}
    linear = all(isinstance(model.get_submodule(path), Linear) for path in alike)
    return tuple(sorted(names)) if alike == paths and linear else ()
