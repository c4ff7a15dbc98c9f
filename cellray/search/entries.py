"""What stands on an agenda: configurations with the trials given to them, and tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from cellray.record import Plain, PlannedTrial, Tried, TriedRate
from cellray.study import ConfigurationConfig, Trial


class Task(NamedTuple):
    """A trial to run, to its end or until it pauses after an epoch."""

    trial: Trial
    until: int | None


@dataclass
class Entry:
    """A configuration on the agenda."""

    number: int
    configuration: ConfigurationConfig
    source: str
    """`given` in the study file, or `suggested`."""
    parameters: dict[str, Plain]
    rungs: list[int]
    """Epochs at which it is judged while it trains."""
    trials: list[PlannedTrial] = field(default_factory=list)
    """Those given to it so far."""
    rung: int = 0
    """The next of the rungs."""
    at_rungs: list[float] = field(default_factory=list)
    """Mean over seeds of the validation Dice at each rung that it has passed or been stopped at."""
    state: str = "running"
    """`running`, `finished`, `stopped` (ended early) or `dropped` (out of the race)."""
    reason: str = ""
    values: list[float] | None = None
    """What a search goes by, once it has finished."""
    excess: dict[str, float] = field(default_factory=dict)
    """Of each metric with a bound: by how much it is missed; at most 0 where it is kept."""
    n_epochs: int | None = None
    same_as: int | None = None
    """Number of an earlier configuration with the same settings: nothing is trained twice."""
    content: str = ""
    """Hash of its settings as they were given."""
    rates: tuple[TriedRate, ...] = ()
    """Learning rates that were tried for it."""
    lr: float | None = None
    """The one that was chosen."""

    @property
    def label(self) -> str:
        return self.configuration.label

    @property
    def waits_for_rate(self) -> bool:
        """Whether its learning rate is to be chosen before its trials can be run."""
        return any(planned.trial.training.lr == "tune" for planned in self.trials[:1])

    @property
    def tried(self) -> Tried:
        """What search.json says of it."""
        return Tried(
            label=self.label,
            number=self.number,
            source=self.source,
            parameters=self.parameters,
            values=None if self.values is None else tuple(self.values),
            acceptable=all(excess <= 0 for excess in self.excess.values()),
            seeds=len(self.trials),
            state=self.state,
            reason=self.reason,
            epoch=self.rungs[self.rung] if self.state == "stopped" and self.same_as is None else None,
            epochs=self.n_epochs,
            settings=self.configuration.model_dump(mode="json", exclude={"label"}),
            rates=self.rates,
            lr=self.lr,
            tuned=self.content if self.lr is not None else "",
        )
