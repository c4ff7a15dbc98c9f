"""Is a network one that cellray can train? Small random images, no data, no GPU, a second or so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BuildNetwork = Callable[[str], nn.Module]
"""A fresh network on a device, drawn from torch's global random state; see `build_model`."""

LEAST_PX = 64
"""About the side of the images that it is tried on."""
LOUDER = 30.0
"""Weights times this: what still stays within [-1, 1] was squeezed there."""
SAME_ANSWER = 1e-4
LISTED = 3

NetworkStatus = Literal["pass", "warning", "failure"]


@dataclass(frozen=True)
class NetworkFinding:
    """What one check says of a network."""

    check: str
    """A key of `NETWORK_CHECKS`, or `build`."""
    status: NetworkStatus
    """`failure` is a fault, `warning` is worth knowing."""
    figure: str
    """What was seen, short."""
    reason: str
    """A sentence; empty for a pass."""


Told = tuple[NetworkStatus, str, str]


@dataclass(frozen=True, eq=False)
class Specimen:
    """A network with images that it can take."""

    build: BuildNetwork
    network: nn.Module
    images: Tensor
    """Two, of different content, shape (2, C, H, W)."""
    batch: tuple[int, int] | None = None
    """Training crops that a worker has of each batch, and their side; if that is known."""

    @property
    def multiple(self) -> int:
        return int(getattr(self.network, "size_multiple", 1))

    def fresh(self, seed: int) -> nn.Module:
        """Another network of the same kind."""
        torch.default_generator.manual_seed(seed)
        return self.build("cpu")

    def judged(self, network: nn.Module, images: Tensor | None = None) -> Tensor:
        """What it says in evaluation mode."""
        with torch.no_grad():
            return network.eval()(self.images if images is None else images)


def check_network(build: BuildNetwork, in_channels: int, batch: tuple[int, int] | None = None) -> list[NetworkFinding]:
    """Look at a network.

    Args:
        build: Makes it.
        in_channels: Channels of the images.
        batch: Training crops that a worker has of each batch, and their side in px; None: it isn't known.

    Returns:
        A finding for each of `NETWORK_CHECKS`, in that order; one called `build` if it can't be built at all. What the
        network raises is a failure; nothing is raised.
    """
    # It may draw random numbers: leave the caller's generator alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            network = build("cpu")
        except Exception as error:
            return [NetworkFinding("build", "failure", "error", _first_line(error))]
        multiple = int(getattr(network, "size_multiple", 1))
        side = -(-LEAST_PX // multiple) * multiple
        images = torch.rand(2, in_channels, side, side + multiple, generator=torch.Generator().manual_seed(1))
        seen = Specimen(build, network, images.contiguous(memory_format=torch.channels_last), batch)
        findings = []
        for name, check in NETWORK_CHECKS.items():
            torch.default_generator.manual_seed(0)
            try:
                findings += [NetworkFinding(name, *verdict) for verdict in check(seen)]
            except Exception as error:
                findings.append(NetworkFinding(name, "failure", "error", f"It raises {_first_line(error)}"))
    return findings


def check_output(seen: Specimen) -> Iterator[Told]:
    """Does it return one tensor of logits, one channel of the images' size, in training as in evaluation?"""
    expected = (len(seen.images), 1, *seen.images.shape[-2:])
    for mode in ("training", "evaluation"):
        with torch.no_grad():
            out = seen.network.train(mode == "training")(seen.images)
        if not isinstance(out, Tensor):
            yield "failure", type(out).__name__, f"In {mode} it returns a {type(out).__name__}, not one tensor."
            return
        if tuple(out.shape) != expected:
            told = f"In {mode} it returns {_shape(out.shape)} for {_shape(seen.images.shape)}"
            yield "failure", _shape(out.shape), f"{told}; expected {_shape(expected)}."
            return
        if not out.isfinite().all():
            yield "failure", "not finite", f"In {mode} what it returns is not finite."
            return
    yield "pass", "one channel", ""


def check_logits(seen: Specimen) -> Iterator[Told]:
    """Are these raw scores, or was an activation applied that a loss would apply once more?"""
    network = copy.deepcopy(seen.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(LOUDER)
    out = torch.cat([seen.judged(network), network.train()(seen.images).detach()])
    low, high = out.min().item(), out.max().item()
    figure = f"{low:.3g} to {high:.3g} with weights {LOUDER:g} times as large"
    if low >= 0 and high <= 1 + SAME_ANSWER:
        told = "Whatever its weights, what it returns stays in [0, 1]: probabilities, where losses expect logits."
        yield "failure", figure, told
    elif low >= -1 - SAME_ANSWER and high <= 1 + SAME_ANSWER:
        told = "Whatever its weights, what it returns stays in [-1, 1], as after tanh; losses expect logits."
        yield "failure", figure, told
    elif low >= 0:
        yield "failure", figure, "It returns nothing below 0, as after relu: it can't say that there is no cell."
    else:
        yield "pass", "raw scores", ""


def check_trained(seen: Specimen) -> Iterator[Told]:
    """Does the gradient reach every weight?"""
    network = seen.network.train()
    network.zero_grad(set_to_none=True)
    target = (torch.rand(network(seen.images).shape, generator=torch.Generator().manual_seed(2)) < 0.3).float()
    nn.functional.binary_cross_entropy_with_logits(network(seen.images).float(), target).backward()
    named = dict(network.named_parameters())
    frozen = [name for name, p in named.items() if not p.requires_grad]
    # A bias before a normalisation has none but rounding.
    unreached = [
        name
        for name, p in named.items()
        if p.requires_grad and (p.grad is None or (p.ndim > 1 and not p.grad.abs().max() > 0))
    ]
    network.zero_grad(set_to_none=True)
    if unreached:
        told = f"The gradient doesn't reach {_listed(unreached)} of {len(named)} weights."
        yield "failure", f"{len(unreached)} of {len(named)} not reached", told
    elif len(frozen) == len(named):
        yield "failure", "nothing to train", "It has no weight that can be trained."
    elif frozen:
        told = f"{_listed(frozen)} of {len(named)} weights are frozen: they stay as they are."
        yield "warning", f"{len(frozen)} of {len(named)} frozen", told
    else:
        yield "pass", f"{sum(p.numel() for p in named.values()):,} parameters", ""


def check_norm(seen: Specimen) -> Iterator[Told]:
    """Has it batch norm, and can several workers share it?"""
    layers = [(name, m) for name, m in seen.network.named_modules() if isinstance(m, _BatchNorm)]
    others = [f"{name} ({type(m).__name__})" for name, m in layers if type(m) is not nn.BatchNorm2d or not m.affine]
    if others:
        told = f"{_listed(others)} are no plain BatchNorm2d of torch: one worker a trial can train it, several can't."
        yield "warning", f"batch norm in {len(layers)} layers", told
    else:
        yield "pass", f"batch norm in {len(layers)} layers" if layers else "no batch norm", ""


def check_sizes(seen: Specimen) -> Iterator[Told]:
    """Which sizes can it take, and does it take the study's batches?"""
    figure = f"sides are multiples of {seen.multiple}" if seen.multiple > 1 else "any size"
    rows, crop_px = seen.batch or (0, 0)
    if crop_px % seen.multiple:
        told = f"Sides must be multiples of {seen.multiple}, and training.crop_px is {crop_px}."
        yield "failure", figure, told
        return
    if rows:
        crops = torch.empty(rows, seen.images.shape[1], crop_px, crop_px, device="meta")
        try:
            copy.deepcopy(seen.network).to("meta").train()(crops)
        except Exception as error:
            told = f"It can't be trained on {rows} crops of training.crop_px {crop_px} at once: {_first_line(error)}"
            yield "failure", figure, told
            return
    yield "pass", figure, ""


def check_repeatable(seen: Specimen) -> Iterator[Told]:
    """Does the same seed give the same weights, and the same image the same answer, whoever its neighbours are?"""
    one, other = seen.fresh(3), seen.fresh(3)
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    different = [name for (name, a), (_, b) in pairs if not torch.equal(a, b)]
    if different:
        told = f"With the same seed it starts with other weights: {_listed(different)}."
        yield "failure", "other weights", told
        return
    first, again = seen.judged(one), seen.judged(one)
    if not torch.equal(first, again):
        yield "failure", "other answers", "In evaluation it gives two answers to the same images."
        return
    alone = torch.cat([seen.judged(one, image[None]) for image in seen.images])
    difference = (alone - first).abs().max().item()
    if difference > SAME_ANSWER * max(first.abs().max().item(), 1.0):
        told = f"In evaluation its answer to an image moves by {difference:.2g} with the others of the batch."
        yield "failure", f"moves by {difference:.2g}", told
        return
    yield "pass", "same seed, same answer", ""


def check_state(seen: Specimen) -> Iterator[Told]:
    """Is all that it has learnt in its checkpoint, and can it be built without memory (torch's device meta)?"""
    trained = seen.fresh(4)
    with torch.no_grad():
        trained.train()(seen.images)  # moves running statistics
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    restored = seen.fresh(5)
    restored.load_state_dict(trained.state_dict())
    if not torch.equal(seen.judged(trained), seen.judged(restored)):
        told = "Its checkpoint in a fresh one answers differently: something it computes with isn't in state_dict()."
        yield "failure", "not all is kept", told
        return
    before = torch.get_rng_state()
    bare = seen.build("meta")
    if not torch.equal(torch.get_rng_state(), before):
        yield "failure", "draws on meta", "Built on torch's device meta it draws random numbers."
        return
    shapes = [{name: t.shape for name, t in n.state_dict().items()} for n in (bare, trained)]
    if shapes[0] != shapes[1]:
        yield "failure", "other on meta", "Built on torch's device meta it has other weights than on the CPU."
        return
    yield "pass", "whole", ""


NETWORK_CHECKS: dict[str, Callable[[Specimen], Iterator[Told]]] = {
    "output": check_output,
    "logits": check_logits,
    "trained": check_trained,
    "norm": check_norm,
    "sizes": check_sizes,
    "repeatable": check_repeatable,
    "state": check_state,
}
"""What is checked, in order."""


def _listed(names: list[str]) -> str:
    """The first few names and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _shape(shape: tuple[int, ...] | torch.Size) -> str:
    return " x ".join(map(str, shape))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
