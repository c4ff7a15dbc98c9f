"""Keeps a sweep's checkpoints within their quota, by removing what is needed least, and says what it removed."""

from __future__ import annotations

import re
from collections.abc import Collection

from cellray.ledger import Ledger, StoredFile

LOG = "removed.txt"
"""In the ledger: what was removed, one line a file."""
GB = 1e9


def keep_within(ledger: Ledger, quota_gb: float, ended: Collection[str]) -> str | None:
    """Remove files until checkpoints and overlays fit the quota.

    First go the last states of trials that ended before their training did (those that were stopped), then the
    overlays, each time the oldest first. The best weights of a trial are never removed, nor is anything of a trial that
    may still go on.

    Args:
        ledger: Of the study.
        quota_gb: Of checkpoints and overlays together, in 10^9 bytes.
        ended: Keys of the trials that have their record.

    Returns:
        A sentence on what was removed or why nothing more can be, or None if there was room.
    """
    stored = [*ledger.files("trials"), *ledger.files("folds")]
    counted = [file for file in stored if re.search(r"/(checkpoints|overlays)/", file.path)]
    used, quota = sum(file.n_bytes for file in counted), quota_gb * GB
    if used <= quota:
        return None
    spare = [file for file in counted if file.path.split("/")[1] in ended and not file.path.endswith("/best.pt")]
    removed = []
    for file in sorted(spare, key=lambda file: ("/overlays/" in file.path, file.changed, file.path)):
        if used <= quota:
            break
        ledger.delete(file.path)
        used -= file.n_bytes
        removed.append(file)
    _note(ledger, removed)
    freed = sum(file.n_bytes for file in removed)
    words = f"checkpoints_gb {quota_gb:g}: removed {len(removed)} files, {freed / GB:.3g} GB ({LOG} names them)"
    if used > quota:
        words += f"; {used / GB:.3g} GB are left, since the best weights of every trial are kept"
    return words if removed or used > quota else None


def _note(ledger: Ledger, removed: list[StoredFile]) -> None:
    if removed:
        before = ledger.read(LOG) if ledger.exists(LOG) else b""
        ledger.write(LOG, before + "".join(f"{file.path} {file.n_bytes}\n" for file in removed).encode())
