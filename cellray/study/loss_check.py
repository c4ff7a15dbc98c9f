"""The loss check of a whole study: what would keep it from starting, and what it runs in spite of."""

from __future__ import annotations

from cellray.errors import StudyError
from cellray.losses.check import Finding, check_loss
from cellray.study.quirks import QUIRKS
from cellray.study.whole import Study


def check_losses(study: Study) -> list[str]:
    """Check the loss of every configuration, without data; a second or so.

    Returns:
        A sentence for each failure that the study allows, and one for each quirk that causes failures on purpose.

    Raises:
        StudyError: Naming configuration, check and reason of every other failure.
    """
    blocking: list[tuple[str, str]] = []
    allowed: list[str] = []
    by_quirk: dict[str, dict[str, None]] = {}
    known: dict[str, list[Finding]] = {}
    for trial in {t.label: t for t in study.with_configurations(study.examples()).trials()}.values():
        content = trial.loss.model_dump_json()
        if content not in known:
            known[content] = [f for f in check_loss(trial.loss.build()) if f.status == "failure"]
        for finding in known[content]:
            causes = [quirk for quirk in trial.quirks if finding.check in QUIRKS[quirk].allows]
            sentence = f"{trial.label!r}: loss check {finding.check}: {finding.reason}"
            if causes:
                by_quirk.setdefault(causes[0], {})[trial.label] = None
            elif finding.check in study.allow:
                allowed.append(f"{sentence} (let through by allow)")
            else:
                blocking.append((finding.check, sentence))
    if blocking:
        names = ", ".join(dict.fromkeys(check for check, _ in blocking))
        lines = "\n".join(f"  {sentence}" for _, sentence in blocking)
        raise StudyError(
            f"the loss check stops this study; `allow: [{names}]` in it would run it all the same:\n{lines}"
        )
    return allowed + [
        f"quirk {quirk} of {'; '.join(labels)}: {QUIRKS[quirk].description}; the failures of the loss check that it "
        f"causes ({', '.join(QUIRKS[quirk].allows)}) are let through"
        for quirk, labels in by_quirk.items()
    ]
