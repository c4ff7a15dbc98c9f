"""The ledger on a local folder, and the same on a real S3 server where one is installed."""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pandas as pd
import pytest
from services import s3_environment

from cellray.errors import LedgerError
from cellray.ledger import Ledger, StoredFile
from cellray.ledger import lease as lease_module
from cellray.ledger.copies import Copies
from cellray.record import TrialRecord

HISTORY = pd.DataFrame({"epoch": [1, 2], "val_dice": [float("nan"), 0.5]})
TABLES = {"history": HISTORY, "images": pd.DataFrame({"image": ["a"], "n_true": [3]}), "objects": pd.DataFrame()}


def record(key="0123456789abcdef", **facts):
    stored = {
        "key": key,
        "evaluation_key": "e",
        "label": "Dice",
        "seed": 0,
        "outcome": "finished",
        "metrics": {"own": {"test": {"dice": 0.5}}},
    }
    return TrialRecord.model_validate(stored | facts)


@pytest.fixture(scope="module")
def s3_storage(tmp_path_factory):
    """``s3://`` storage on a SeaweedFS started here, its endpoint in the address."""
    with s3_environment(tmp_path_factory.mktemp("weed")) as url:
        yield f"s3://cellray/here?scheme=http&endpoint_override={url.removeprefix('http://')}"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def ledger(request, tmp_path):
    """A prepared ledger, on each kind of storage."""
    storage = str(tmp_path / "studies") if request.param == "folder" else request.getfixturevalue("s3_storage")
    made = Ledger(storage, f"study_{tmp_path.name}")
    made.prepare()
    return made


@pytest.fixture
def local(tmp_path):
    made = Ledger(str(tmp_path / "studies"), "study")
    made.prepare()
    return made


def test_a_record_comes_back_as_it_went_in(ledger):
    ledger.write_record(record(), TABLES, {"overlays/test.worst.png": b"png"})
    assert ledger.records() == [record()]
    assert ledger.record("0123456789abcdef") == record()
    pd.testing.assert_frame_equal(ledger.table("0123456789abcdef", "history"), HISTORY)
    assert ledger.table("0123456789abcdef", "objects").empty
    assert ledger.read("trials/0123456789abcdef/overlays/test.worst.png") == b"png"
    again = pickle.loads(pickle.dumps(ledger))
    assert again.records() == ledger.records() and again.uri == ledger.uri


def test_files_can_be_written_read_listed_and_removed(ledger):
    ledger.write("report/index.html", b"first")
    ledger.write("report/index.html", b"second")
    assert ledger.read("report/index.html") == b"second"
    assert ledger.exists("report/index.html") and not ledger.exists("report") and not ledger.exists("report/other")
    assert ledger.names("report") == ["index.html"] and ledger.names("nowhere") == []
    ledger.delete("report/index.html")
    ledger.delete("report/index.html")
    with pytest.raises(FileNotFoundError):
        ledger.read("report/index.html")


@pytest.mark.parametrize("path", ["trials/../../../outside", "trials/a/../../../../outside"])
def test_no_copy_lies_outside_of_the_cache(tmp_path, monkeypatch, path):
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))
    copies = Copies(("s3://b", "study"), [StoredFile(path, 1, 1.0), StoredFile("trials/a/b", 1, 1.0)])
    for name in ("trials/a/b", path):
        copies.keep(name, b"x", [name])
    assert [copies.find(name, [name]) for name in ("trials/a/b", path)] == [b"x", None]
    assert [file.stem for file in tmp_path.rglob("*") if file.is_file()] == ["b"]


def test_what_is_new_or_has_no_time_of_change_or_another_size_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path))
    now = time.time()
    changed = {"timeless": 0.0, "new": now - 30, "longer": 1.0, "good": 1.0, "settled": now - 90}
    copies = Copies(("s3://b", "study"), [StoredFile(name, 1, when) for name, when in changed.items()])
    for name in changed:
        copies.keep(name, b"xy" if name == "longer" else b"x", [name])
    assert [name for name in changed if copies.find(name, [name]) == b"x"] == ["good", "settled"]
    for also in ("timeless", "new"):
        copies.keep("made", b"of two", ["good", also])
        assert copies.find("made", ["good", also]) is None


def test_what_was_made_is_good_for_the_same_files_and_the_same_code(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path))
    record, table, other = (StoredFile(f"trials/a/{name}", 3, 1.0) for name in ("trial.json", "images", "objects"))
    name, of = "trials/a/made", ["trials/a/trial.json", "trials/a/images"]

    def found(*files: StoredFile, made_by: str = "code") -> bytes | None:
        return Copies(("", "study"), files).find(name, of, made_by)

    Copies(("", "study"), [record, table]).keep(name, b"made", of, "code")
    assert found(record, table) == found(record, table, other) == b"made"
    changed = (table._replace(n_bytes=4), table._replace(changed=1.001))
    assert [found(record, t) for t in changed] == [None, None]
    assert found(record) is None and found(record, table, made_by="other code") is None
    Copies(("", "study"), [record, changed[0]]).keep(name, b"anew", of, "code")
    assert found(record, changed[0]) == b"anew" and found(record, table) is None  # the newer is in its place
    (piece,) = (file for file in tmp_path.rglob("*") if file.is_file())
    piece.write_bytes(piece.read_bytes()[:-1])
    assert found(record, changed[0]) is None
    for _ in range(2):  # what is damaged is replaced, and what is good stays if another process keeps it, too
        Copies(("", "study"), [record, changed[0]]).keep(name, b"again", of, "code")
        assert found(record, changed[0]) == b"again"


def test_what_is_of_a_trial_that_is_gone_or_of_a_ledger_long_unused_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path))
    a, b = StoredFile("trials/a/images", 1, 1.0), StoredFile("trials/b/images", 1, 1.0)

    def kept() -> list[str]:
        return sorted(file.parent.name for file in tmp_path.rglob("images.*"))

    for whose in ("one", "other"):
        copies = Copies(("", whose), [a, b])
        for file in (a, b):
            copies.keep(file.path, b"x", [file.path])
    assert kept() == ["a", "a", "b", "b"]
    Copies(("", "one"), [a])
    assert kept() == ["a", "a", "b"]
    somebodys = tmp_path / "ledgers" / "my_study" / "trials"  # $CELLRAY_CACHE may be a folder with other things in it
    somebodys.mkdir(parents=True)
    for folder in (tmp_path / "ledgers").iterdir():
        os.utime(folder, times=(time.time() - 40 * 86400,) * 2)
    assert Copies(("", "one"), [a]).find(a.path, [a.path]) == b"x"
    assert kept() == ["a"]
    assert somebodys.is_dir()


def test_checkpoints_are_kept_by_name(ledger):
    assert ledger.load_checkpoint("k", "last") is None
    ledger.save_checkpoint("k", "last", b"1")
    ledger.save_checkpoint("k", "last", b"2")
    assert ledger.load_checkpoint("k", "last") == b"2"
    assert ledger.records() == []  # a trial with checkpoints only is not done


def test_one_sweep_at_a_time(ledger):
    with ledger.lease():
        pattern = rf"held by another sweep \(process {os.getpid()} on {socket.gethostname()}, last seen \d+ s ago\)"
        with pytest.raises(LedgerError, match=pattern), ledger.lease():
            pass
    with ledger.lease():  # it was released, and the refused one didn't take it away
        assert ledger.exists("lease.json")
    assert not ledger.exists("lease.json")


def test_a_failing_write_leaves_the_old_file_and_nothing_else(local, monkeypatch):
    local.write("status.json", b"old")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        local.write("status.json", b"new")
    assert local.read("status.json") == b"old" and local.names("") == ["status.json"]


def test_a_record_appears_last_and_a_new_one_hides_the_old_until_it_is_whole(local, monkeypatch):
    local.write_record(record(), TABLES, {})
    written, write = [], local.write

    def spy(path, data):
        written.append(path.rsplit("/", 1)[1])
        if path.endswith("objects.parquet"):
            assert local.records() == []
        write(path, data)

    monkeypatch.setattr(local, "write", spy)
    local.write_record(record(evaluation_key="f"), TABLES, {"traceback.txt": b"?"})
    assert written[-1] == "trial.json" and local.records() == [record(evaluation_key="f")]


def test_an_interrupted_record_is_not_there(local, monkeypatch):
    write = local.write

    def dies(path, data):
        if path.endswith("objects.parquet"):
            raise OSError("gone")
        write(path, data)

    monkeypatch.setattr(local, "write", dies)
    with pytest.raises(OSError, match="gone"):
        local.write_record(record(), TABLES, {})
    assert local.records() == []


@pytest.mark.parametrize("content", [b'{"key": ', b"\xff\xfe", b"[]", b"{}"])
def test_a_damaged_record_is_named_with_what_to_do(local, content):
    local.write("trials/abc/trial.json", content)
    with pytest.raises(LedgerError, match=r"trials/abc/trial\.json is not a record.*remove it"):
        local.records()


def test_storage_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "studies").write_text("")
    ledger = Ledger(str(tmp_path / "studies"), "study")
    with pytest.raises(LedgerError, match="studies' is not writable"):
        ledger.prepare()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, which not even root may write to, is Linux's")
def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(LedgerError, match="not writable"):
        Ledger("/proc/studies", "study").prepare()


@pytest.mark.parametrize("storage", ["ftp://somewhere/x", "s3://hush:hush@bucket?secret=hush"])
def test_storage_of_an_unknown_kind_is_refused_and_no_secret_shown(storage):
    with pytest.raises(LedgerError, match="can't be opened") as caught:
        Ledger(storage, "study")
    assert "hush" not in str(caught.value)


@pytest.mark.slow
def test_storage_that_does_not_answer_is_a_ledger_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    storage = f"s3://nowhere/x?scheme=http&endpoint_override=127.0.0.1:{port}"
    with pytest.raises(LedgerError, match="s3://nowhere/x/study can't be read") as caught:
        Ledger(storage, "study").records()
    assert "hush" not in str(caught.value)


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Ledger("~/studies", "study").uri == f"{tmp_path}/studies/study"


def test_an_expired_lease_is_taken_over(local):
    old = {"host": "elsewhere", "pid": 1, "id": "x", "seen": time.time() - lease_module.LEASE_S - 1}
    local.write("lease.json", json.dumps(old).encode())
    with local.lease():
        pass


def lease_elsewhere(local, seen: float) -> None:
    local.write("lease.json", json.dumps({"host": "elsewhere", "pid": 1, "id": "x", "seen": seen}).encode())


@pytest.mark.slow
def test_a_holder_on_another_host_that_renews_its_lease_keeps_it(local):
    lease_elsewhere(local, time.time())
    renewal = threading.Timer(1.5, lease_elsewhere, [local, time.time() + 1])
    renewal.start()
    said = []
    with pytest.raises(LedgerError, match="process 1 on elsewhere"), local.lease(said.append):
        pass
    renewal.join()
    assert re.fullmatch(r"process 1 on elsewhere was sweeping .* 0 s ago; .* takes over in 60 s", *said)
    assert json.loads(local.read("lease.json"))["host"] == "elsewhere"


@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [0, 1000])  # of this host's clock
def test_a_holder_on_another_host_that_says_no_more_is_taken_for_dead(local, monkeypatch, ahead_s):
    monkeypatch.setattr(lease_module, "LEASE_S", 2.0)
    lease_elsewhere(local, time.time() + ahead_s)
    begun = time.monotonic()
    with local.lease():
        assert 1.5 < time.monotonic() - begun < 30
        assert json.loads(local.read("lease.json"))["host"] == socket.gethostname()


@pytest.mark.slow
def test_the_lease_of_a_dead_process_of_this_host_is_taken_over(local):
    code = (
        "import os, sys; from cellray.ledger import Ledger; "
        "lease = Ledger(*sys.argv[1:]).lease(); lease.__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, local.storage, local.study]).returncode == 9
    assert local.exists("lease.json")
    with local.lease():
        pass
    assert not local.exists("lease.json")


@pytest.mark.slow
def test_a_lease_that_a_clock_left_in_the_future_is_watched_and_taken_over(local, monkeypatch):
    """Its process has died, and another has its number now."""
    monkeypatch.setattr(lease_module, "LEASE_S", 2.0)
    here = {"host": socket.gethostname(), "pids": os.readlink("/proc/self/ns/pid"), "pid": os.getppid(), "id": "x"}
    local.write("lease.json", json.dumps(here | {"seen": time.time() + 3600}).encode())
    said = []
    with local.lease(said.append):
        assert json.loads(local.read("lease.json"))["pid"] == os.getpid()
    assert len(said) == 1 and "was sweeping this ledger 0 s ago" in said[0]


@pytest.mark.slow
def test_a_lease_is_renewed_and_not_taken_back_from_another(local, monkeypatch):
    monkeypatch.setattr(lease_module, "LEASE_S", 2.4)
    with ExitStack() as stack:
        stack.enter_context(local.lease())
        first, end = json.loads(local.read("lease.json"))["seen"], time.monotonic() + 10
        while json.loads(local.read("lease.json"))["seen"] == first:  # so that the next renewal is some time away
            assert time.monotonic() < end
            time.sleep(0.01)
        other = {"host": "elsewhere", "pid": 1, "id": "x", "seen": time.time() + 100}
        local.write("lease.json", json.dumps(other).encode())
        time.sleep(0.8)
    assert json.loads(local.read("lease.json")) == other


def test_a_broken_lease_does_not_lock_the_ledger(local):
    local.write("lease.json", b'{"host": ')
    with local.lease():
        pass
