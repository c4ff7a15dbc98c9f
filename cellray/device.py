"""The device a trial runs on, and what is fast there."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import resource
from pathlib import Path

from cellray.errors import StudyError
from cellray.torch_later import torch

ALLOCATOR_ENV = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""glibc keeps and reuses big blocks instead of returning them: page faults of a CPU training step fall to almost none.
It has to be in the environment before the process starts. One arena: every trial of a reused worker is a new thread,
and each thread's own arena would keep that trial's memory."""


def has_gpu() -> bool:
    """Whether torch sees a GPU on this machine."""
    return torch.cuda.is_available()


def pick_device(gpus: float) -> torch.device:
    """`cuda` if the trial was given (part of) a GPU, else `cpu`.

    Raises:
        StudyError: If a GPU is asked for and torch sees none.
    """
    if gpus <= 0:
        return torch.device("cpu")
    if not has_gpu():
        raise StudyError(f"resources.gpus is {gpus:g}, but torch {torch.__version__} sees no GPU on this machine")
    return torch.device("cuda")


def prepare(device: torch.device, threads: int, gpus: float = 1) -> None:
    """Set what a process needs for speed and for repeatable numbers; called at the start of every trial.

    Args:
        device: Where it computes.
        threads: CPU threads to compute with.
        gpus: Its part of a GPU. Below 1 it gets no more than this part of the GPU's memory, so that the trials beside
            it have theirs: asking for more is this trial's error, not its neighbour's.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(min(gpus, 1.0))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """The context of a forward pass: bfloat16 or float32; `auto` takes bfloat16 where the device has it in hardware."""
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native to the device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))


def describe(device: torch.device, threads: int) -> str:
    """The device in words, for the record."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"cpu: {name}, {threads} thread{'s' if threads > 1 else ''}"


def release_memory() -> None:
    """Give back what a trial has freed, so that a process that runs many does not grow with them."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)


def reason_of(error: Exception, device: torch.device) -> str:
    """Why a trial failed, in words; of a full GPU also how much it had, how much was asked for, and what to change."""
    if not isinstance(error, torch.OutOfMemoryError) or device.type != "cuda":
        return f"{type(error).__name__}: {error}"
    total = torch.cuda.get_device_properties(device).total_memory
    share = torch.cuda.get_per_process_memory_fraction()
    gib = [amount / 2**30 for amount in (total * share, total, torch.cuda.max_memory_allocated(device))]
    return (
        f"out of GPU memory: the trial may take {gib[0]:.1f} of {gib[1]:.1f} GiB and needs more than the {gib[2]:.1f} "
        "GiB it had at most; lower training.batch_size or training.crop_px, or give it more with resources.gpus"
    )


def peak_memory_mb(device: torch.device) -> float:
    """Most memory taken so far: of the GPU by this trial, or resident in this process (its whole life)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
