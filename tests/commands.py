"""The `cellray` command, as a process of its own or, for texts and exit codes, in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from cellray.cli import common
from cellray.cli.app import run
from cellray.device import ALLOCATOR_ENV
from cellray.outside import FOLDERS_VARIABLE

WIDTH = 200
"""Of the terminal, in characters."""
LEFT_BY_COMMANDS = {"PYTHONSAFEPATH": "1", FOLDERS_VARIABLE: ""}
"""Variables that commands set for the processes that they start."""


def run_apart(*words: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A command as a user gives it, ended."""
    return subprocess.run(
        [sys.executable, "-m", "cellray", *words],
        cwd=cwd,
        env={**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run_here(*words: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The same without the seconds that a process takes to start: the entry point is called, and leaves no trace.

    `test_cli` runs each command but `ui` at least once apart, too.
    """
    threads, code = torch.get_num_threads(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said, redirect_stderr(StringIO()) as err:
        # With the allocator's variables `train` doesn't start anew, in place of this process.
        for name, value in {**ALLOCATOR_ENV, **LEFT_BY_COMMANDS, "COLUMNS": str(WIDTH), **env}.items():
            patch.setenv(name, value)
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["cellray", *words])
        patch.setattr(common.out, "_width", WIDTH)  # read from the environment once
        try:
            run()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            torch.set_num_threads(threads)
    return subprocess.CompletedProcess(words, code, said.getvalue(), err.getvalue())
