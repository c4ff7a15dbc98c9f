from .checking import Finding, check_loss
from .looking import Status
from .names import CHECKS

__all__ = ["CHECKS", "Finding", "Status", "check_loss"]
