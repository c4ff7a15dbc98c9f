"""How many trials run at once on one machine, and whether its memory holds them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from cellray.study import ResourcesConfig

KEPT_FREE = 0.1
"""Share of a memory that is left to everything else: the system, Ray, the report, the cache of decoded images."""
CUDA_CONTEXT_MB = 500.0
"""What each process takes of its GPU beside tensors: its CUDA context and loaded kernels, about."""
_ROUNDING = 1e-9  # three trials of 1/3 GPU fit on one


@dataclass(frozen=True)
class Machine:
    """What a machine has for trials."""

    cpus: float
    gpus: int
    memory_mb: float
    """Of the machine, or less where this process may not use it all; infinite if unknown."""
    gpu_memory_mb: float
    """Of its smallest GPU; 0 without one."""

    @property
    def node(self) -> dict[str, float]:
        """What it has as a node of a cluster."""
        return {"CPU": self.cpus, "GPU": float(self.gpus)}


def this_machine() -> Machine:
    """The machine that this process runs on."""
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    sizes = [torch.cuda.get_device_properties(device).total_memory / 2**20 for device in devices]
    return Machine(float(os.cpu_count() or 1), len(sizes), _memory_mb(), min(sizes, default=0.0))


def at_once(resources: ResourcesConfig, machine: Machine, limit: int | None = None) -> tuple[int, str]:
    """How many trials the machine's processors and the study's own limit allow at once, and what sets the number.

    Returns:
        The number, 0 if not even one fits, and one of `CPUs`, `GPUs`, `max_concurrent`.
    """
    bounds = {"CPUs": int(machine.cpus / (resources.cpus * resources.n_workers) + _ROUNDING)}
    if resources.n_gpus:
        bounds["GPUs"] = (
            int(machine.gpus / resources.n_gpus + _ROUNDING)
            if resources.n_gpus >= 1
            else machine.gpus * int(1 / resources.n_gpus + _ROUNDING)  # no trial lies on two GPUs
        )
    most = limit or resources.max_concurrent
    if most is not None:
        bounds["max_concurrent"] = most
    by = min(bounds, key=lambda name: bounds[name])
    return bounds[by], by


def most_in_memory(peak_mb: float, resources: ResourcesConfig, machine: Machine) -> int:
    """How many trials fit in memory together: the GPUs' if trials use them, else the machine's.

    Args:
        peak_mb: Most memory that one worker of a trial takes, as the probe says it: of a GPU by its tensors, or
            resident in its process.
        resources: Of one trial.
        machine: Whose memory.
    """
    if resources.n_gpus:
        each = int(machine.gpu_memory_mb * (1 - KEPT_FREE) / (peak_mb + CUDA_CONTEXT_MB))
        if resources.n_gpus < 1:
            return machine.gpus * min(each, int(1 / resources.n_gpus + _ROUNDING))
        return int(machine.gpus / resources.n_gpus + _ROUNDING) if each else 0
    free = machine.memory_mb * (1 - KEPT_FREE)
    return 10**6 if free == float("inf") or not peak_mb else int(free / (peak_mb * resources.n_workers))


def memory_trouble(n: int, peak_mb: float, resources: ResourcesConfig, machine: Machine) -> str | None:
    """Why `n` trials at once don't fit in memory and what would help, or None if they do.

    Ray shares out CPUs and GPUs, not memory: it starts all the same what then dies of it.

    Args:
        n: Trials at once.
        peak_mb: As for `most_in_memory`.
        resources: Of one trial.
        machine: Whose memory.
    """
    most = most_in_memory(peak_mb, resources, machine)
    if n <= most:
        return None
    if resources.n_gpus:
        has, unit = machine.gpu_memory_mb, "GPU"
        need = f"each worker takes about {(peak_mb + CUDA_CONTEXT_MB) / 1024:.1f} GiB of its GPU"
    else:
        has, unit = machine.memory_mb, "machine"
        need = f"each trial takes about {peak_mb * resources.n_workers / 1024:.1f} GiB"
    words = f"memory: {need}, and the {unit} has {has / 1024:.1f} GiB"
    if most == 0:
        return f"{words}, so not even one fits: set training.batch_size or training.crop_px lower"
    if resources.n_gpus and resources.n_gpus < 1:
        share = 1 / max(most // machine.gpus, 1)
        return f"{words}, so {most} of {n} fit at once: set resources.gpus to {share:.3g}"
    return f"{words}, so {most} of {n} fit at once: set resources.max_concurrent to {most}"


def _memory_mb() -> float:
    """Memory that this process may use: the machine's, or what its control group allows."""
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError):
        return float("inf")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(name) as stream:
                text = stream.read().strip()
        except OSError:
            continue
        if text.isdigit():  # else `max`
            sizes.append(int(text))
    return min(sizes) / 2**20
