"""The network compiled for training steps by torch's Inductor; where it can't be, steps are as ever.

Two runs of a trial on one machine have the same bits, and so has one that goes on after an end. Compiled steps compute
the same sums in another order. What is compiled is the forward pass of training steps, and its way back; losses,
validation and everything after a training call the plain network.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from filelock import FileLock
from torch import Tensor, nn

from cellray.data import default_cache_dir
from cellray.device import autocast, describe
from cellray.study import short_hash

COMPILE_S = 64.0
"""That a compilation takes on one core."""


class CannotCompileError(Exception):
    """Why a network isn't compiled, in words."""


@dataclass(frozen=True)
class Compiled:
    """A network as training steps call it; it shares its weights with the one that it was made of."""

    network: Callable[[Tensor], Tensor]
    compiler: str
    seconds: float
    """That compiling took, or finding what was compiled before."""


def compile_network(network: nn.Module, images: Tensor, device: torch.device, precision: str) -> Compiled:
    """The network compiled, forwards and backwards, for batches such as `images` (N, C, H, W).

    All trials of a machine share what was compiled, in the cache's folder `compiled`; the first of those that want the
    same compiles it, and others wait. The network keeps weights, statistics and gradients as they were.

    Raises:
        CannotCompileError: If it can't be, whatever the reason.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise CannotCompileError(f"there is no C++ compiler ({compiler})")
    started = time.monotonic()
    # Machine code of one processor must not be run by another, where several share a cache.
    here = {"torch": torch.__version__, "device": describe(device, 1), "can": torch.cpu.get_capabilities()}
    folder = default_cache_dir() / "compiled" / short_hash(here)
    statistics = {key: values.clone() for key, values in network.named_buffers()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.fspath(folder)
        with FileLock(folder / "lock"), torch.random.fork_rng():
            compiled, name = _try(network, images, device, precision, compiler)
    except Exception as error:  # of compilers, and of any part of torch that reads a user's code
        raise CannotCompileError(_reason(error)) from error
    finally:
        with torch.no_grad():
            for key, values in network.named_buffers():
                values.copy_(statistics[key])
        network.zero_grad(set_to_none=True)
    return Compiled(compiled, name, time.monotonic() - started)


def _try(
    network: nn.Module, images: Tensor, device: torch.device, precision: str, compiler: str
) -> tuple[Callable[[Tensor], Tensor], str]:
    """The network compiled, after one pass forwards and backwards through it, and by what."""
    # Importing these takes seconds, and most trainings need none of them.
    import torch._dynamo
    import torch._inductor.config as inductor
    from torch._dynamo.utils import counters

    # What earlier trials of this process left would count against the few forms of a function that are kept.
    torch._dynamo.reset()
    counters.clear()
    # A trial has its own threads and no more; and nothing is chosen by the clock.
    inductor.cpp.cxx = (None, compiler)
    inductor.compile_threads = torch.get_num_threads()
    inductor.deterministic = True
    compiled: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False)
    network.train()
    with autocast(device, precision):
        logits = compiled(images)
    logits.float().sum().backward()
    if not counters["stats"]["unique_graphs"]:
        raise CannotCompileError("nothing in the network can be compiled")
    if device.type == "cuda":
        return compiled, "Inductor, Triton"
    from torch._inductor.cpp_builder import get_compiler_version_info

    return compiled, f"Inductor, {get_compiler_version_info(compiler)}"


def _reason(error: Exception) -> str:
    """An error of a compilation in one line: the compiler's own first one, if it is among many."""
    if isinstance(error, CannotCompileError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if " error: " in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {told}"[:200]


def left_out(reason: str) -> str:
    """What a user is told where a network isn't compiled; the same for every trial, so that it need be told once."""
    return f"training.compile on {socket.gethostname()}: {reason}; trained without"
