"""The network check of a whole study: what would keep it from starting."""

from __future__ import annotations

from functools import partial

from cellray.errors import StudyError
from cellray.model import load_weights
from cellray.model.check import NetworkFinding, check_network
from cellray.study.network import DEFAULT, ModelConfig, ReadWeights
from cellray.study.whole import Study


def check_networks(study: Study, read_weights: ReadWeights | None = None) -> list[str]:
    """Check the network of every configuration, without data; a second or so each. c-ResUnet is known to be right.

    Args:
        study: What is to be run.
        read_weights: Reads what `model.weights` names; None: whether they fit isn't looked at.

    Returns:
        A sentence for each thing worth knowing.

    Raises:
        StudyError: Naming configuration, check and reason of every failure.
    """
    faults: list[str] = []
    notes: list[str] = []
    known: dict[str, list[NetworkFinding]] = {}
    for trial in {t.label: t for t in study.with_configurations(study.examples()).trials()}.values():
        model = trial.model
        batch = trial.training.batch_size // study.resources.n_workers, trial.training.crop_px
        content = f"{model.model_dump_json()} {batch}"
        if content not in known:
            channels = trial.data.channels
            build = partial(model.build, channels)
            known[content] = [] if model.name == DEFAULT else check_network(build, channels, batch)
            if model.weights and read_weights and not any(f.check == "build" for f in known[content]):
                known[content] += _check_weights(model, channels, read_weights)
        for finding in known[content]:
            sentence = f"{trial.label!r}: network check {finding.check}: {finding.reason}"
            if finding.status == "failure":
                faults.append(sentence)
            elif finding.status == "warning":
                notes.append(sentence)
    if faults:
        lines = "\n".join(f"  {sentence}" for sentence in faults)
        raise StudyError(f"the network check stops this study:\n{lines}")
    return notes


def _check_weights(model: ModelConfig, channels: int, read_weights: ReadWeights) -> list[NetworkFinding]:
    """Whether the weights to start from fit."""
    assert model.weights is not None
    try:
        load_weights(model.build(channels, "meta").to_empty(device="cpu"), read_weights(model.weights), model.weights)
    except StudyError as error:
        return [NetworkFinding("weights", "failure", "don't fit", str(error))]
    return []
