"""One study on Ray Tune."""

from cellray.sweep.cluster import check_feasible, connect
from cellray.sweep.engine import run_sweep

__all__ = ["check_feasible", "connect", "run_sweep"]
