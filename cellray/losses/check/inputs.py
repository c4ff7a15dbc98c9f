"""Does a loss use what it is given: the maps it asks for, words among its settings, the precision of its logits?"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cellray.losses.bound import Loss, Term, map_names
from cellray.losses.check import scenes
from cellray.losses.check.looking import LossError, Verdict, gradient_of, only, value_of
from cellray.losses.check.scenes import Scene


def check_maps(loss: Loss) -> Iterator[Verdict]:
    """Does every map that a loss asks for have an effect?"""
    ignored = []
    for term in loss.terms:
        for name in map_names(term.function) if term.weight else ():
            if not _map_matters(only(loss, _awake(term)), name):
                ignored.append((term, name))
    for term, name in ignored:
        told = f"{term.name} asks for the map {name} and ignores it: with another map, value and gradient are the same."
        yield "failure", f"{name} ignored", told
    if not ignored:
        yield "pass", ", ".join(loss.maps) or "none", ""


def check_words(loss: Loss) -> Iterator[Verdict]:
    """Does every setting that is a word lead somewhere: a choice with an effect, a file that is there?"""
    found = []
    for term in [term for term in loss.terms if term.weight]:
        for setting, word in _words(term).items():
            if verdict := _judge_word(only(loss, term), term, setting, word):
                found.append(verdict)
    yield from found or [("pass", "", "")]


def check_precision(loss: Loss) -> Iterator[Verdict]:
    """Does it compute in float32? Sums may be exact; work on every pixel in float64 is slow."""
    logits = scenes.ordinary_logits()
    with _DoublePrecision(logits.numel()) as seen:
        value_of(loss, logits, scenes.ordinary())
    if seen.names:
        names = ", ".join(dict.fromkeys(seen.names))
        told = (
            f"It computes in float64 pixel by pixel ({names}): twice as slow as float32 on a processor, and up to "
            "64 times on a graphics card."
        )
        yield "warning", "float64", told
    else:
        yield "pass", "float32", ""


def _awake(term: Term) -> Term:
    """The term with 1 in the place of every setting that is 0: what weighs nothing is asleep, not ignored."""
    parameters = inspect.signature(term.function).parameters.values()
    settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | dict(term.settings)
    zeros = {name: 1.0 for name, value in settings.items() if value == 0 and not isinstance(value, bool)}
    return replace(term, settings={**term.settings, **zeros})


def _map_matters(loss: Loss, name: str) -> bool:
    """Whether some other map changes the value or the gradient of an ordinary prediction."""
    scene = scenes.ordinary()
    values = scene.maps[name]
    # Ids: all cells one, none at all. Distances: further away, nearer, turned around.
    others = [torch.ones_like(values) * (values > 0), torch.zeros_like(values), 2 * values + 1, values.flip(3)]
    before, before_slope = gradient_of(loss, scenes.ordinary_logits(), scene)
    for other in others:
        try:
            after, slope = gradient_of(loss, scenes.ordinary_logits(), Scene(scene.target, {**scene.maps, name: other}))
        except LossError:
            return True  # it looked
        if after != before or not torch.equal(slope, before_slope):
            return True
    return False


def _words(term: Term) -> dict[str, str]:
    """The settings of a term that are text, as they stand."""
    parameters = inspect.signature(term.function).parameters.values()
    settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | dict(term.settings)
    return {name: os.fspath(v) for name, v in settings.items() if isinstance(v, str | os.PathLike) and v}


def _judge_word(loss: Loss, term: Term, setting: str, word: str) -> Verdict | None:
    """What is wrong with a setting that is text; None if nothing is."""
    name = f"{term.name}: {setting}"
    if _is_path(setting, word):
        if os.path.exists(word):
            return None
        return "failure", f"{setting} isn't there", f"{name} names {word!r}, and there is no such file or folder here."
    if not _choices(term, setting) and _accepts(loss, setting, f"no-{word}-such"):
        told = f"{name} takes any word for {word!r} and computes the same: a misspelt one would go unseen."
        return "warning", f"{setting} {word}", told
    return None


def _is_path(setting: str, word: str) -> bool:
    return os.sep in word or setting.rpartition("_")[2] in ("path", "file", "folder", "dir")


def _choices(term: Term, setting: str) -> tuple[object, ...]:
    """The words that an annotation `Literal[...]` allows: a study file takes no other."""
    try:
        return get_args(get_type_hints(term.function).get(setting))
    except NameError:  # a user's annotations may not be importable
        return ()


def _accepts(loss: Loss, setting: str, word: str) -> bool:
    """Whether another word for a setting changes nothing, not even to an error."""
    (term,) = loss.terms
    scene, logits = scenes.ordinary(), scenes.ordinary_logits()
    other = replace(loss, terms=(replace(term, settings={**term.settings, setting: word}),))
    try:
        return value_of(other, logits, scene) == value_of(loss, logits, scene)
    except LossError:
        return False


class _DoublePrecision(TorchDispatchMode):
    """Notes what is computed from float64 tensors of a value a pixel to another such tensor.

    Args:
        n_pixels: Of the batch.
    """

    def __init__(self, n_pixels: int) -> None:
        super().__init__()
        self.n_pixels = n_pixels
        self.names: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to skip torch's compiler, torch would import it first, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # A sum by cell needs its pixels in float64 once; that is a copy, and no work.
        moves = func.is_view or func.overloadpacket.__name__ in ("_to_copy", "clone", "copy_", "detach")
        if not moves and any(map(self._is_large, args)) and self._is_large(result):
            self.names.append(func.overloadpacket.__name__.strip("_"))
        return result

    def _is_large(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.dtype == torch.float64 and value.numel() >= self.n_pixels
