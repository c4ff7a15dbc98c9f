"""Which loss a configuration minimises: a name, a preset, a sum of terms, or a user's own function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from cellray.errors import StudyError, one_of, unknown
from cellray.losses import LOSSES, PRESETS, RELEASED
from cellray.losses.bound import Loss, Term, find_function
from cellray.outside import code_hash, is_dotted
from cellray.study.group import Settings
from cellray.study.keywords import check_allowed, complete_keywords, runs_code
from cellray.study.problems import Problem, SettingsError, problems_in

LossKeywords = dict[str, object]

FLATTENED = {"tversky": "flattened_tversky", "focal_tversky": "flattened_focal_tversky"}
"""What the quirk `flattened_tversky` puts in the place of a loss."""
NEUTRAL = {"reduction": "image"}
"""Settings that came after the first ledgers: at these values they change nothing, and stay out of the trial key."""


class NamedLoss(Settings):
    """A loss by its name, with its settings."""

    name: str | None = None
    """A key of ``cellray.losses.LOSSES``, a preset such as ``combined_balanced@slides``, or
    ``package.module:function``."""
    settings: LossKeywords = Field(default={}, validate_default=True)
    """Keyword arguments of that loss; those left out are filled in from its signature."""
    code: str | None = Field(default=None, validate_default=True)
    """Hash of a user's own module, filled in when the study is loaded: changed code is another trial."""

    @field_validator("name")
    @classmethod
    def is_known(cls, name: str | None, info: ValidationInfo) -> str | None:
        return name if name is None else _known_loss(name, info)

    @field_validator("settings")
    @classmethod
    def are_complete(cls, settings: LossKeywords, info: ValidationInfo) -> LossKeywords:
        name = info.data.get("name")
        if not name or (is_dotted(name) and not runs_code(info)):
            return settings
        return check_loss_settings(name, settings)

    @field_validator("code")
    @classmethod
    def is_current(cls, code: str | None, info: ValidationInfo) -> str | None:
        name = info.data.get("name")
        return code_hash(find_function(name)) if name and is_dotted(name) and runs_code(info) else code


class TermConfig(NamedLoss):
    """One term of a combined loss."""

    name: str
    """A key of ``cellray.losses.LOSSES``, a preset such as ``focal_tversky@paper``, or ``package.module:function``."""
    weight: float = Field(default=1.0, ge=0)
    """What the term is multiplied by, its lambda; weights needn't add up to 1."""

    @model_validator(mode="before")
    @classmethod
    def takes_presets(cls, values: object) -> object:
        return _expanded(values, combined=False)


class LossConfig(NamedLoss):
    """Which loss a configuration minimises: one by name, or a weighted sum of terms."""

    terms: tuple[TermConfig, ...] = ()
    """Instead of a name: the terms of a combined loss."""
    balance: Literal["none", "gradient"] = "none"
    """`gradient`: each term is divided by the norm of its gradient, measured on the fresh network, so that its weight
    is its share of influence at the start."""
    double_activation: bool = False
    """As the reference study's code, where the loss activates a probability once more. Set by the quirk."""

    @model_validator(mode="before")
    @classmethod
    def takes_presets(cls, values: object) -> object:
        return _expanded(values, combined=True)

    @model_validator(mode="after")
    def is_one_or_combined(self) -> LossConfig:
        if (self.name is None) == (not self.terms):
            raise ValueError("give either name or terms, not both and not neither")
        if self.name is None and self.settings:
            raise SettingsError([Problem(("settings",), "a combined loss has its settings in each of its terms")])
        if self.terms and sum(term.weight for term in self.terms) == 0:
            raise SettingsError([Problem(("terms",), "every term has weight 0")])
        if self.balance != "none" and len(self.terms) < 2:
            raise SettingsError([Problem(("balance",), "balances the terms of a combined loss, and there are none")])
        return self

    def describe(self, *, reductions: bool = False) -> str:
        """One line for tables, such as ``bce(cell_weight=50)`` or ``0.3 bce + 0.7 dice``; defaults are left out.

        Args:
            reductions: Say of each loss of overlap whether it is taken by image or by batch.
        """
        if self.name is not None:
            text = _call(self.name, self.settings, reductions)
        else:
            text = " + ".join(f"{term.weight:g} {_call(term.name, term.settings, reductions)}" for term in self.terms)
        balanced = " (gradients balanced)" if self.balance == "gradient" else ""
        return text + balanced + (" (activated twice)" if self.double_activation else "")

    def decisive(self, *, neutral: bool = False) -> dict[str, object]:
        """What of this decides a training, for the trial key.

        Args:
            neutral: Also settings at their `NEUTRAL` value, for a reader.
        """
        content: dict[str, object] = {}
        settings_of = dict if neutral else _decisive_settings
        if self.name is not None:
            content |= {"name": self.name, "settings": settings_of(self.settings), **_code(self.code)}
        else:
            content["terms"] = [
                {"name": t.name, "weight": t.weight, "settings": settings_of(t.settings), **_code(t.code)}
                for t in self.terms
            ]
        if self.balance != "none":
            content["balance"] = self.balance
        if self.double_activation:
            content["double_activation"] = True
        return content

    def with_quirks(self, quirks: Iterable[str]) -> LossConfig:
        """The same loss as the reference study's code would compute it, by the quirks that act on a loss."""
        changed = self.model_dump()
        if "double_activation" in quirks:
            changed["double_activation"] = True
        if "flattened_tversky" in quirks:
            for part in (changed, *changed["terms"]):
                if part["name"] in FLATTENED:
                    part["name"] = FLATTENED[part["name"]]
                    known = check_loss_settings(part["name"], {})
                    part["settings"] = {k: v for k, v in part["settings"].items() if k in known}
        return LossConfig.model_validate(changed)

    def build(self) -> Loss:
        """The loss as training calls it.

        Raises:
            StudyError: If the code of a user's own loss has gone or changed since the study was loaded.
        """
        terms = []
        for part in self.terms or (self,):
            assert part.name is not None  # terms have names, and so has a loss without terms
            function = find_function(part.name)
            if part.code is not None and code_hash(function) != part.code:
                raise StudyError(f"loss {part.name!r}: its code here differs from that of the study as it was loaded")
            weight = part.weight if isinstance(part, TermConfig) else 1.0
            terms.append(Term(weight, part.name, function, part.settings))
        return Loss(tuple(terms), double_activation=self.double_activation)


def loss_named(name: str) -> Loss:
    """The loss that a name or preset stands for, with its default settings; for looking at losses without a study.

    Raises:
        StudyError: If there is none of that name, or what is there is no loss.
    """
    try:
        return LossConfig(name=name).build()
    except ValidationError as error:
        raise StudyError("; ".join(problem.message for problem in problems_in(error, LossConfig))) from None


def check_loss_settings(name: str, settings: Mapping[str, object]) -> LossKeywords:
    """Complete settings of a loss: those given, and the defaults of its signature (`complete_keywords`).

    Raises:
        SettingsError: If a keyword is unknown or a value doesn't fit, one problem for each.
    """
    return complete_keywords(find_function(name), name, settings)


def _expanded(values: object, *, combined: bool) -> object:
    """A loss or term as the file gives it, with a preset's name replaced by what it stands for.

    Settings given beside the name win over the preset's. Anything that isn't a preset is returned as it came.
    """
    if not isinstance(values, Mapping):
        return values
    if isinstance(values.get("terms"), list):  # a list is what a file can give, and a tuple what stays as it is
        values = {**values, "terms": tuple(values["terms"])}
    if "@" not in str(values.get("name")):
        return values
    name = values["name"]
    if name not in PRESETS:
        raise SettingsError([Problem(("name",), unknown("preset", name, PRESETS))])
    preset = PRESETS[name]
    rest = {key: value for key, value in values.items() if key not in ("name", "settings")}
    given = values.get("settings") or {}
    if "terms" not in preset:
        return {"name": preset["name"], **rest, "settings": {**preset.get("settings", {}), **given}}
    if not combined:
        raise SettingsError([Problem(("name",), f"{name!r} is a combined loss and can't be a term of another")])
    if given:
        words = f"{name!r} is a combined loss: write its terms out to change their settings"
        raise SettingsError([Problem(("settings",), words)])
    return {"terms": tuple(preset["terms"]), **rest}


def _known_loss(name: str, info: ValidationInfo) -> str:
    """`name`, if the study may use it: the package's own, or a path where the loading allows code."""
    if not is_dotted(name):
        return one_of("loss", name, LOSSES | RELEASED)
    check_allowed(name, info)
    if runs_code(info):
        find_function(name)
    return name


def _code(code: str | None) -> dict[str, str]:
    return {} if code is None else {"code": code}


def _decisive_settings(settings: LossKeywords) -> LossKeywords:
    return {key: value for key, value in settings.items() if key not in NEUTRAL or value != NEUTRAL[key]}


def _call(name: str, settings: Mapping[str, object], reductions: bool) -> str:
    defaults = {} if is_dotted(name) else check_loss_settings(name, {})
    if reductions and "reduction" in defaults:
        rest = {key: value for key, value in settings.items() if key != "reduction"}
        return f"{_call(name, rest, False)} by {settings.get('reduction', defaults['reduction'])}"
    given = {k: f"{v:g}" if isinstance(v, float) else v for k, v in settings.items() if v != defaults.get(k)}
    return name + (f"({', '.join(f'{k}={v}' for k, v in given.items())})" if given else "")
