"""One study on Ray Tune."""

from cellray.sweep.capacity import check_feasible
from cellray.sweep.cluster import connect
from cellray.sweep.engine import run_sweep

__all__ = ["check_feasible", "connect", "run_sweep"]
