"""One study on Ray Tune."""

from cellray.sweep.cluster import check_feasible, connect
from cellray.sweep.engine import Observer, run_sweep

__all__ = ["Observer", "check_feasible", "connect", "run_sweep"]
