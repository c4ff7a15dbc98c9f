"""A study as a job of a running Ray cluster, through its Jobs API: code and study travel, and no process stays here."""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cellray
from cellray.errors import StudyError
from cellray.scratch import scratch_folder
from cellray.submission.parcel import STUDY_FILE, Parcel

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STUDY_KEY = "cellray_study"
"""Names the study among a job's metadata."""
PARCEL_FOLDER = "study"
"""Of the parcel in the job's working folder, from which Ray lets everything import first."""
MISSING = "submitting needs Ray's Jobs API: pip install 'cellray[cluster]'"
JOB_AWAY_S = 120.0
"""A cluster that doesn't answer for so long isn't followed any more."""


def connect_jobs(address: str) -> JobSubmissionClient:
    """A client of a cluster's Jobs API.

    Args:
        address: ``http://host:8265``, where the head's dashboard listens. A token, if the cluster asks for one, is read
            as Ray does: ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``, ``~/.ray/auth_token``.

    Raises:
        StudyError: If nobody answers there, the token is wrong, or this installation has no Jobs API.
    """
    if not address.startswith(("http://", "https://")):
        raise StudyError(f"--address: expected http://HOST:8265, the head's dashboard, got {address!r}")
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise StudyError(MISSING) from error
    logging.disable(logging.INFO)  # Ray's lines for each file that is sent
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise StudyError(
            f"the cluster at {address} wants another token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    except RuntimeError as error:
        if "ray[default]" in str(error):
            raise StudyError(MISSING) from error
        raise StudyError(f"the cluster at {address} refuses: {_first_line(error)}") from error
    except ConnectionError as error:
        raise StudyError(f"no Ray cluster answers at {address}: {_first_line(error)}") from error


def running_job(client: JobSubmissionClient, study: str) -> str | None:
    """The job of a study of that name that hasn't ended, if there is one."""
    for job in client.list_jobs():
        if job.submission_id and (job.metadata or {}).get(STUDY_KEY) == study and not job.status.is_terminal():
            return job.submission_id
    return None


def submit_job(client: JobSubmissionClient, parcel: Parcel) -> str:
    """Start a study; returns the job's id.

    The package is sent along, so the cluster runs this version of cellray; what it stands on (torch, MLflow, …) has to
    be installed there.

    Raises:
        StudyError: If the cluster doesn't take the job.
    """
    python, study_file = ["python", "-P", "-m"], f"{PARCEL_FOLDER}/{STUDY_FILE}"
    entrypoint = shlex.join([*python, "cellray", "sweep", study_file, "--address", "auto", *parcel.words])
    with scratch_folder("submit") as folder:
        inner = Path(folder, PARCEL_FOLDER)
        inner.mkdir()
        for name, text in parcel.files.items():
            (inner / name).write_text(text)
        package = str(Path(cellray.__file__).parent)
        try:
            return client.submit_job(
                entrypoint=entrypoint,
                runtime_env={"working_dir": folder, "py_modules": [package], "excludes": ["**/__pycache__"]},
                metadata={STUDY_KEY: parcel.study.name},
            )
        except RuntimeError as error:
            raise StudyError(f"the cluster doesn't take the job: {_first_line(error)}") from error


def follow_job(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> int:
    """Pass on what a job prints until it ends; a cluster that is away for a moment is asked again.

    Returns:
        The command's exit code.

    Raises:
        StudyError: If the cluster is away for long, or the job was stopped or lost.
    """
    tail, last_answer = _Tail(client, job, write), time.monotonic()
    while True:
        try:
            asyncio.run(tail.follow())
            info = client.get_job_info(job)
            last_answer = time.monotonic()
        except (ConnectionError, RuntimeError, OSError) as error:
            if time.monotonic() - last_answer > JOB_AWAY_S:
                raise StudyError(f"the cluster went away ({_first_line(error)}); the job may go on") from error
        else:
            if info.status.is_terminal():
                break
        time.sleep(1.0)
    if info.status == "SUCCEEDED":
        return 0
    code = getattr(info, "driver_exit_code", None)
    if info.status == "FAILED" and code:
        return int(code)
    raise StudyError(f"job {job} ended as {info.status}: {(info.message or 'no reason given').strip()}")


class _Tail:
    """What a job prints, each character once however often the connection breaks."""

    def __init__(self, client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> None:
        self._client, self._job, self._write = client, job, write
        self._n_written = 0

    async def follow(self) -> None:
        n = 0  # every connection begins with the first character
        async for text in self._client.tail_job_logs(self._job):
            self._write(text[max(self._n_written - n, 0) :])
            n += len(text)
            self._n_written = max(self._n_written, n)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
