"""Folders and buckets: what an address may hold, what is waited for, and what stays unread or unwritten."""

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pyarrow import fs
from services import S3_KEYS, Door, put, s3_environment, throttle
from tiny_study import draw_images

from cellray import storage as storage_module
from cellray.data import open_dataset, remote
from cellray.errors import DataError, LedgerError, StorageError
from cellray.ledger import Ledger
from cellray.ledger import files as files_module
from cellray.storage import is_passing, open_storage, patiently, public
from cellray.study import DatasetConfig, load_study

KEY = "AWS_SECRET_ACCESS_KEY"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    with s3_environment(tmp_path_factory.mktemp("weed")) as url:
        yield url


@pytest.fixture
def quick(monkeypatch):
    """Pauses of a test's length."""
    monkeypatch.setattr(storage_module, "LONGEST_PAUSE_S", 0.1)


# Addresses.


def test_a_folder_is_made_absolute_and_a_bucket_loses_its_last_slash(tmp_path, monkeypatch, endpoint):
    monkeypatch.chdir(tmp_path)
    assert open_storage("here")[1] == str(tmp_path / "here")
    assert open_storage("s3://cellray/there/")[1] == "cellray/there"


def test_a_file_of_a_bucket_is_read_whole_but_not_beyond_what_cellray_writes(endpoint, monkeypatch):
    ledger = Ledger("s3://cellray/sizes", "study")
    ledger.write("three.bin", b"abc" * 1000)
    monkeypatch.setattr(files_module, "CHUNK_BYTES", 700)
    assert ledger.read("three.bin") == b"abc" * 1000
    monkeypatch.setattr(files_module, "MOST_BYTES", 2999)
    with pytest.raises(LedgerError, match=r"three\.bin can't be read: larger than 2999 bytes"):
        ledger.read("three.bin")


@pytest.mark.parametrize("address", ["s3://key:hush@bucket/x", "s3://hush@bucket/x", "s3://key:hush@bucket?a=b"])
def test_credentials_in_an_address_are_refused_and_not_shown(address):
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY") as caught:
        open_storage(address)
    assert "hush" not in str(caught.value)


def test_what_is_no_storage_is_refused():
    with pytest.raises(ValueError, match="expected a folder or s3://bucket/path, got gs://"):
        open_storage("gs://bucket/x")


def test_an_address_is_shown_without_its_query():
    assert public("s3://bucket/x?scheme=http&endpoint_override=10.0.0.1:80") == "s3://bucket/x"
    assert public("/data/studies") == "/data/studies"


# Patience.


class Flaky:
    """Fails so many times with a message, then gives 7."""

    def __init__(self, n: int, message: str) -> None:
        self.n, self.message, self.calls = n, message, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.n:
            raise OSError(self.message)
        return 7


@pytest.mark.slow
@pytest.mark.parametrize(
    "message",
    [
        "AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7, Could not connect to server",
        "AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.",
        "AWS Error UNKNOWN (HTTP status 503) during HeadObject operation",
        "AWS Error INTERNAL_FAILURE during GetObject operation",
    ],
)
def test_what_passes_is_waited_for(quick, message):
    act = Flaky(3, message)
    assert patiently(act, "s3://b", patience_s=20) == 7
    assert act.calls == 4


@pytest.mark.parametrize(
    "message",
    [
        "AWS Error ACCESS_DENIED during PutObject operation: Access Denied.",
        "AWS Error NO_SUCH_BUCKET during PutObject operation",
        "AWS Error SIGNATURE_DOES_NOT_MATCH during ListObjectsV2 operation",
        "[Errno 28] No space left on device",
    ],
)
def test_what_does_not_pass_is_raised_at_once(message):
    act = Flaky(1, message)
    assert not is_passing(OSError(message))
    with pytest.raises(OSError, match="Err"):
        patiently(act, "s3://b", patience_s=20)
    assert act.calls == 1


@pytest.mark.slow
def test_patience_ends(quick):
    act = Flaky(10**9, "AWS Error NETWORK_CONNECTION")
    begun = time.monotonic()
    with pytest.raises(OSError, match="NETWORK"):
        patiently(act, "s3://b", patience_s=0.5)
    assert act.calls > 2
    assert time.monotonic() - begun < 10


# A real store.


@pytest.mark.slow
def test_a_bucket_that_isnt_there_is_refused_and_not_made(endpoint):
    with pytest.raises(LedgerError, match="there is no bucket 'celray'; make it first"):
        Ledger("s3://celray/studies", "study").prepare()
    assert open_storage("s3://celray")[0].get_file_info("celray").type == fs.FileType.NotFound


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [(KEY, "doesn't fit AWS_ACCESS_KEY_ID|access denied"), ("AWS_ACCESS_KEY_ID", "doesn't know the key|access denied")],
)
def test_wrong_credentials_are_named_but_not_shown(endpoint, monkeypatch, name, words):
    monkeypatch.setenv(name, "hush-hush")
    for use in (Ledger.prepare, Ledger.records, lambda ledger: ledger.exists("study.yaml")):
        with pytest.raises(LedgerError, match=words) as caught:
            use(Ledger("s3://cellray/studies", "study"))
        assert "hush" not in str(caught.value)


@pytest.mark.slow
def test_a_store_that_isnt_there_at_the_start_is_not_waited_for(monkeypatch):
    for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    begun = time.monotonic()
    with pytest.raises(LedgerError, match="nothing answers at its endpoint"):
        Ledger("s3://cellray/studies", "study").prepare()
    assert time.monotonic() - begun < 60


@pytest.mark.slow
def test_a_store_that_goes_away_is_waited_for_also_by_who_was_sent_the_ledger(endpoint, monkeypatch, quick):
    door = Door(int(endpoint.rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.address)
    ledger = Ledger("s3://cellray/away", "study")
    ledger.prepare()
    sent = pickle.loads(pickle.dumps(ledger))
    door.shut()
    threading.Timer(3.0, door.open).start()
    sent.write("a", b"whole")
    assert ledger.read("a") == b"whole"


@pytest.mark.slow
@pytest.mark.slow
def test_a_store_that_takes_few_requests_at_once_gets_everything_in_the_end(tmp_path, quick):
    files = {f"trials/{i:02}/overlay.png": bytes([i]) * 3_000_000 for i in range(24)}
    with s3_environment(tmp_path) as _, ThreadPoolExecutor(12) as pool:
        throttle(tmp_path, n_writes=1)
        hasty = Ledger("s3://cellray/hasty", "s", patience_s=0, _has_answered=True)
        answers = [pool.submit(hasty.write, path, data) for path, data in files.items()]
        refusals = [error.__cause__ for answer in answers if (error := answer.exception())]
        assert refusals  # the SDK's own few attempts weren't enough
        assert all("HTTP status 503" in str(cause) and is_passing(cause) for cause in refusals)

        patient = Ledger("s3://cellray/patient", "s", _has_answered=True)
        list(pool.map(patient.write, files, files.values()))
        assert {path: patient.read(path) for path in files} == files


@pytest.mark.slow
def test_a_record_that_is_cut_off_on_its_way_is_none(endpoint, monkeypatch):
    """The connection breaks when half of the object has gone through."""
    door = Door(int(endpoint.rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.address)
    ledger = Ledger("s3://cellray/cut", "study", patience_s=0)
    ledger.prepare()
    door.bytes_left = 2_000_000
    with pytest.raises(StorageError, match="can't be written") as cut:
        ledger.write("trials/k/trial.json", b'{"key": "k", "filling": "' + b"x" * 4_000_000 + b'"}')
    assert "AWS Error" in str(cut.value.__cause__)
    door.open()
    assert ledger.record("k") is None
    assert ledger.records() == []


# Datasets in a bucket.


@pytest.mark.slow
def test_a_dataset_in_a_bucket_is_that_of_the_folder_and_fetched_once(endpoint, tmp_path, monkeypatch):
    images = draw_images(tmp_path / "disks")
    put(images, "data/disks")

    def opened(path: str):
        config = DatasetConfig(name="disks", path=path)
        return open_dataset(config, channels=1, normalise="none", cache_dir=tmp_path / "cache")

    here, there = opened(str(images)), opened("s3://cellray/data/disks")
    assert there.fingerprint == here.fingerprint
    monkeypatch.setattr(remote, "_copy", lambda *_: pytest.fail("fetched again"))
    opened("s3://cellray/data/disks")


@pytest.mark.slow
def test_an_empty_place_in_a_bucket_is_a_clear_error(endpoint, tmp_path):
    config = DatasetConfig(name="none", path="s3://cellray/data/nothing")
    with pytest.raises(DataError, match="s3://cellray/data/nothing: no files there"):
        open_dataset(config, channels=1, normalise="none", cache_dir=tmp_path)


def test_a_study_keeps_the_address_of_its_data(tmp_path):
    text = "name: far\nquestion: Which?\ndata: {train: {name: far, path: 's3://cellray/data/far'}}\n"
    text += "training: {steps: 10, crop_px: 64}\nconfigurations: [{label: Dice, loss: {name: dice}}]\nseeds: [0]\n"
    (tmp_path / "far.yaml").write_text(text)
    assert load_study(tmp_path / "far.yaml").data.train.path == "s3://cellray/data/far"
