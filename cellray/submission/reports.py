"""A study's report brought from where its ledger lies to the machine in front of the reader."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cellray.errors import LedgerError
from cellray.ledger import Ledger

REPORT_FOLDER = "report/"


def copy_report(ledger: Ledger, folder: Path) -> int:
    """Copy a study's report into a folder, over what is there; returns the number of files.

    Raises:
        LedgerError: If there is no report, or a file of it would lie outside of the folder.
    """
    n = 0
    top = folder.resolve()
    for name, data in _files(ledger):
        target = (top / name).resolve()
        if not target.is_relative_to(top):
            raise LedgerError(f"{ledger.uri}: a file of the report is called {name!r}, outside of its folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        n += 1
    return n


def tar_report(ledger: Ledger, stream: IO[bytes]) -> None:
    """Write a study's report to a stream, as an uncompressed tar.

    Raises:
        LedgerError: If there is no report.
    """
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        for name, data in _files(ledger):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))


def untar_report(stream: IO[bytes], folder: Path) -> int:
    """Unpack what `tar_report` wrote; nothing lands outside of the folder. Returns the number of files.

    Raises:
        LedgerError: If it is no such tar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                archive.extract(member, folder, filter="data")
                n += 1
    except tarfile.TarError as error:
        raise LedgerError(f"the report that came can't be unpacked into {folder}: {error}") from error
    return n


def _files(ledger: Ledger) -> Iterator[tuple[str, bytes]]:
    found = ledger.files(REPORT_FOLDER.rstrip("/"))
    if not any(file.path == f"{REPORT_FOLDER}index.html" for file in found):
        raise LedgerError(f"{ledger.uri} has no report yet; `cellray report` makes one")
    for file in found:
        yield file.path.removeprefix(REPORT_FOLDER), ledger.read(file.path)
