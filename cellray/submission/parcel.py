"""What travels with a submitted study: its file as checked here, and the losses and networks of the user's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cellray.errors import StudyError
from cellray.storage import is_remote, read_plain
from cellray.study import OF_A_STUDY, Study, load_study, read_study

MAX_PARCEL_BYTES = 900_000
"""A ConfigMap of Kubernetes holds a mebibyte."""
STUDY_FILE = "study.yaml"


@dataclass(frozen=True)
class Parcel:
    """A study on its way to a cluster."""

    study: Study
    files: dict[str, str]
    """Text by name: `study.yaml` and, with code, the Python files beside it."""
    words: tuple[str, ...]
    """What follows `cellray sweep study.yaml`."""


def pack(study_file: Path, *, words: tuple[str, ...] = (), allow_code: bool = False) -> Parcel:
    """Check a study here, before anything is sent.

    Args:
        study_file: The YAML file.
        words: Options of `cellray sweep` to be given there.
        allow_code: Let the study import losses and networks from the Python files beside it, which then travel too.

    Raises:
        StudyError: If the study is wrong, or names data by a path that means nothing on another machine.
    """
    study = load_study(study_file, code="allowed" if allow_code else "forbidden")
    # Once more with its relative paths as they are written.
    written = read_study(read_plain(study_file, MAX_PARCEL_BYTES).decode("utf-8-sig"), str(study_file), code="stored")
    for dataset in (written.data.train, *written.data.external):
        if dataset.path is not None and not is_remote(dataset.path) and not os.path.isabs(dataset.path):
            raise StudyError(
                f"{study_file}: dataset {dataset.name!r}: the path {dataset.path!r} starts at the study file's folder "
                f"on this machine; a cluster needs s3://bucket/… or an absolute path that its nodes share"
            )
    for trial in written.trials():
        start = trial.model.weights
        if start and not (start.startswith(OF_A_STUDY) or is_remote(start) or os.path.isabs(start)):
            raise StudyError(
                f"{study_file}: model.weights: the path {start!r} starts at the study file's folder on this machine; a "
                f"cluster needs s3://bucket/… or an absolute path that its nodes share"
            )
    files = {STUDY_FILE: study.dump_yaml()}
    if allow_code:
        files |= {path.name: _code(path) for path in sorted(study_file.resolve().parent.glob("*.py"))}
        words = (*words, "--allow-code")
    size = sum(len(text.encode()) for text in files.values())
    if size > MAX_PARCEL_BYTES:
        raise StudyError(f"{study_file}: the study and its code are {size} bytes, expected at most {MAX_PARCEL_BYTES}")
    return Parcel(study, files, words)


def _code(path: Path) -> str:
    try:
        return read_plain(path, MAX_PARCEL_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} can't be sent: {getattr(error, 'strerror', error)}") from None
