"""One configuration, one seed -> one record in the ledger."""

from cellray.trial.predicted import forget_other_predictions
from cellray.trial.recording import code_version, new_network
from cellray.trial.references import judge_references, read_references
from cellray.trial.run import home, record_failure, record_stopped, run_trial
from cellray.trial.sets import Sets

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
