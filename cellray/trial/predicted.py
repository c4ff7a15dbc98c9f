"""What a trained network predicts for the images that judge it, kept in the ledger until the trial is judged.

So GPUs, and all processors but those of one process, can be given up in between: judging needs no network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cellray.errors import CheckpointError
from cellray.evaluation import LogitsOf
from cellray.ledger import Ledger
from cellray.record import PlannedTrial, Provenance
from cellray.torch_later import Tensor, torch
from cellray.training import TrainingRun
from cellray.training.state import State, from_bytes, read_as, to_bytes
from cellray.trial.sets import Sets

FOLDER, ALL = "predicted", ".all.pt"
"""In the ledger; and the end of the name of the file that says that a trial's others are there."""
FILE_BYTES = 2**26
"""A file of predictions is closed once it holds so many."""


@dataclass(frozen=True)
class Predictions:
    """One trial's predictions for every set, and what its record will say of how they came about."""

    sets: tuple[str, ...]
    """The set of each file."""
    run: TrainingRun
    provenance: Provenance
    """Of training and prediction."""
    seconds: float
    """That prediction took."""
    peak_memory_mb: float

    def keep(self, planned: PlannedTrial, ledger: Ledger) -> None:
        """Write what makes the stored files count: that they are all there, and the rest."""
        state = {**vars(self), "run": vars(self.run), "provenance": self.provenance.model_dump()}
        ledger.write(_path(planned, ALL), to_bytes(state))

    def logits_of(self, planned: PlannedTrial, ledger: Ledger, name: str) -> Iterator[tuple[int, Tensor]]:
        """Index and logits (H, W), float32, of each image of a set, in the order in which they were predicted.

        Raises:
            CheckpointError: If a file is damaged or has gone.
        """
        for number in (number for number, of in enumerate(self.sets) if of == name):
            for index, logits in _read(planned, ledger, f".{number}.pt").items():
                yield int(index), logits.float()


def store_logits(planned: PlannedTrial, ledger: Ledger, names: Iterable[str], logits_of: LogitsOf) -> tuple[str, ...]:
    """Store the predictions for some sets as files; returns the set of each."""
    sets: list[str] = []

    def write(held: dict[str, Tensor], name: str) -> None:
        ledger.write(_path(planned, f".{len(sets)}.pt"), to_bytes(held))
        sets.append(name)

    for name in names:
        held: dict[str, Tensor] = {}
        for index, logits in logits_of(name):
            held[str(index)] = _packed(logits)
            if sum(each.nbytes for each in held.values()) >= FILE_BYTES:
                write(held, name)
                held = {}
        if held:
            write(held, name)
    return tuple(sets)


def kept_predictions(planned: PlannedTrial, ledger: Ledger) -> Predictions | None:
    """The predictions of a trial that waits to be judged, if they are of the sets and settings that judge it now."""
    try:
        state = _read(planned, ledger, ALL)
        with read_as("predictions"):
            made = {"run": TrainingRun(**state["run"]), "provenance": Provenance(**state["provenance"])}
            return Predictions(**{**state, **made})
    except CheckpointError:
        return None


def forget_predictions(planned: PlannedTrial, ledger: Ledger) -> None:
    """Remove a trial's predictions, those for other settings too; the files that make them count go first."""
    mine = [name for name in ledger.names(FOLDER) if name.startswith(f"{planned.key}.")]
    for name in sorted(mine, key=lambda name: not name.endswith(ALL)):
        ledger.delete(f"{FOLDER}/{name}")


def forget_other_predictions(plan: Iterable[PlannedTrial], sets: Sets, ledger: Ledger) -> None:
    """Remove the predictions of trials that won't be judged any more, which the study had in a sweep that was ended."""
    books = (ledger, ledger.within("folds"))
    found = [(book, name) for book in books for name in book.names(FOLDER)]
    wanted = {sets.keys(one)[0] for p in plan if not p.done for one in p.trial.trainings} if found else set()
    for book, name in found:
        if name.partition(".")[0] not in wanted:
            book.delete(f"{FOLDER}/{name}")


def n_waiting(ledger: Ledger) -> int:
    """How many trials wait to be judged."""
    return sum(name.endswith(ALL) for name in ledger.names(FOLDER))


def _path(planned: PlannedTrial, end: str) -> str:
    return f"{FOLDER}/{planned.key}.{planned.evaluation_key}{end}"


def _read(planned: PlannedTrial, ledger: Ledger, end: str) -> State:
    try:
        data = ledger.read(_path(planned, end))
    except FileNotFoundError:
        raise CheckpointError("predictions", "a file has gone") from None
    with read_as("predictions"):
        return from_bytes(data)


def _packed(logits: Tensor) -> Tensor:
    """The same numbers in half the room where bfloat16 holds them, as it does what it computed."""
    half = logits.to(torch.bfloat16)
    return half if torch.equal(half.float(), logits) else logits.clone()
