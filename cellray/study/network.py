"""Which network a configuration trains: cellray's own, one of another library, or a user's; and where it starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from cellray.errors import StudyError, one_of
from cellray.model import MODELS, find_factory
from cellray.outside import code_hash, is_dotted
from cellray.study.group import Settings
from cellray.study.keywords import check_allowed, complete_keywords, runs_code
from cellray.study.problems import Problem, SettingsError, problems_in

if TYPE_CHECKING:
    import torch
    from torch import nn

ReadWeights = Callable[[str], bytes]
"""The content of what `model.weights` names. Raises `StudyError` if there is none."""

OF_A_STUDY = "study:"
"""How the weights of another study's trial begin: ``study:NAME/LABEL/SEED``."""

DEFAULT = "c_resunet"
BASE_FEATURES = 16


class ModelConfig(Settings):
    """The network."""

    name: str = DEFAULT
    """A key of ``cellray.model.MODELS``, or ``package.module:Factory``."""
    base_features: Annotated[int, Field(ge=1)] | None = Field(default=None, validate_default=True)
    """Of c-ResUnet: width of its first level, 16 by default. Other networks have `settings`."""
    settings: dict[str, object] = Field(default={}, validate_default=True)
    """Keyword arguments of the network; those left out are filled in from its signature."""
    weights: str | None = None
    """Where training starts, instead of fresh weights: a file of torch.save, or ``study:NAME/LABEL/SEED``, the best
    weights of a trial in the same storage. A relative path starts at the folder of the study file."""
    code: str | None = Field(default=None, validate_default=True)
    """Hash of a user's own module, filled in when the study is loaded: changed code is another trial."""
    weights_hash: str | None = Field(default=None, validate_default=True)
    """Hash of those weights, filled in likewise."""

    @field_validator("name")
    @classmethod
    def is_known(cls, name: str, info: ValidationInfo) -> str:
        return _known_network(name, info)

    @field_validator("base_features")
    @classmethod
    def is_c_resunets(cls, width: int | None, info: ValidationInfo) -> int | None:
        name = info.data.get("name", DEFAULT)
        if name == DEFAULT:
            return BASE_FEATURES if width is None else width
        if width is not None:
            raise ValueError(f"belongs to {DEFAULT}; {name} has settings")
        return None

    @field_validator("settings")
    @classmethod
    def are_complete(cls, settings: dict[str, object], info: ValidationInfo) -> dict[str, object]:
        name = info.data.get("name")
        return settings if name is None else _complete(name, settings, info)

    @field_validator("code")
    @classmethod
    def is_current(cls, code: str | None, info: ValidationInfo) -> str | None:
        name = info.data.get("name")
        return code_hash(find_factory(name)) if name and is_dotted(name) and runs_code(info) else code

    @field_validator("weights_hash")
    @classmethod
    def is_of_weights(cls, digest: str | None, info: ValidationInfo) -> str | None:
        weights = info.data.get("weights")
        return None if weights is None else _hash_of(weights, info) or digest

    def decisive(self) -> dict[str, object]:
        """What of this decides a training, for the trial key."""
        own: dict[str, object] = (
            {"base_features": self.base_features} if self.name == DEFAULT else {"settings": self.settings}
        )
        known = {"code": self.code, "weights": self.weights_hash}
        return {"name": self.name, **own, **{key: value for key, value in known.items() if value is not None}}

    def describe(self) -> str:
        """One line for tables, such as ``c_resunet(base_features=8)`` or ``smp(encoder=resnet18)``; defaults of
        settings are left out."""
        defaults: dict[str, object] = {}
        if self.name != DEFAULT and not is_dotted(self.name):
            defaults = complete_keywords(find_factory(self.name), self.name, {})
        settings = {"base_features": self.base_features} if self.name == DEFAULT else self.settings
        given = [f"{k}={v}" for k, v in settings.items() if k not in defaults or _plain(v) != _plain(defaults[k])]
        start = f", from {self.weights}" if self.weights else ""
        return self.name + (f"({', '.join(given)})" if given else "") + start

    def build(self, in_channels: int, device: torch.device | str = "cpu") -> nn.Module:
        """A fresh network, see `cellray.model.build_model`; `weights` aren't in it.

        Raises:
            StudyError: If it can't be built, or the code of a user's own network has gone or changed since the study
                was loaded.
        """
        from cellray.model import build_model

        if self.code is not None and code_hash(find_factory(self.name)) != self.code:
            raise StudyError(f"network {self.name!r}: its code here differs from that of the study as it was loaded")
        settings = {"base_features": self.base_features} if self.name == DEFAULT else self.settings
        return build_model(self.name, in_channels=in_channels, device=device, **settings)

    def check_weights(self, content: bytes) -> None:
        """Raise `StudyError` unless these are the weights of the study as it was loaded."""
        if weights_hash(content) != self.weights_hash:
            raise StudyError(f"model.weights {self.weights}: they differ here from those of the study as it was loaded")


def model_named(name: str) -> ModelConfig:
    """The network of a name, with its default settings, to look at without a study. Runs a user's own code.

    Raises:
        StudyError: If there is none of that name, or it has settings without defaults.
    """
    try:
        return ModelConfig.model_validate({"name": name}, context={"code": "allowed"})
    except ValidationError as error:
        raise StudyError("; ".join(problem.message for problem in problems_in(error, ModelConfig))) from None


def complete_changes(changes: Mapping[str, object], info: ValidationInfo) -> dict[str, object]:
    """What a configuration changes in `model`, with what is filled in as the study is loaded.

    Raises:
        SettingsError: If it names code that may not run, or weights that aren't there.
    """
    done = dict(changes)
    name, weights = changes.get("name"), changes.get("weights")
    try:
        if isinstance(name, str) and is_dotted(name):
            _known_network(name, info)
            if runs_code(info):
                if isinstance(settings := changes.get("settings"), dict):
                    _complete(name, settings, info)  # the others may be the study's own
                done["code"] = code_hash(find_factory(name))
    except SettingsError as error:
        raise SettingsError(Problem(("settings", *p.path), p.message) for p in error.problems) from None
    except ValueError as error:
        raise SettingsError([Problem(("name",), str(error))]) from None
    if isinstance(weights, str) and (digest := _hash_of(weights, info, below=("weights",))):
        done["weights_hash"] = digest
    return done


def weights_hash(content: bytes) -> str:
    """First 16 hex digits of the SHA-256 of a file of weights."""
    return hashlib.sha256(content).hexdigest()[:16]


def _known_network(name: str, info: ValidationInfo) -> str:
    """`name`, if the study may use it: one of `MODELS`, or a path where the loading allows code."""
    if not is_dotted(name):
        return one_of("model", name, MODELS)
    check_allowed(name, info)
    if runs_code(info):
        find_factory(name)
    return name


def _complete(name: str, settings: Mapping[str, object], info: ValidationInfo) -> dict[str, object]:
    if name == DEFAULT:
        if settings:
            raise SettingsError([Problem((), f"{DEFAULT} has none: its width is base_features, beside its name")])
        return {}
    if is_dotted(name) and not runs_code(info):
        return dict(settings)
    complete = complete_keywords(find_factory(name), name, settings, leave_out="in_channels")
    return {key: _plain(value) for key, value in complete.items()}


def _hash_of(weights: str, info: ValidationInfo, below: tuple[str, ...] = ()) -> str | None:
    """Hash of what `weights` names, or None where the study is loaded without looking at it."""
    read: ReadWeights | None = (info.context or {}).get("read_weights")
    if read is None:
        return None
    try:
        return weights_hash(read(weights))
    except StudyError as error:
        raise SettingsError([Problem(below, str(error))]) from None


def _plain(value: object) -> object:
    """As a file has it: lists for tuples, plain mappings for others."""
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
