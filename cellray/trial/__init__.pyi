from .predicted import forget_other_predictions
from .recording import code_version, new_network
from .references import judge_references, read_references
from .run import home, record_failure, record_stopped, run_trial
from .sets import Sets

__all__ = [
    "Sets",
    "code_version",
    "forget_other_predictions",
    "home",
    "judge_references",
    "new_network",
    "read_references",
    "record_failure",
    "record_stopped",
    "run_trial",
]
