"""The weights that a study names as the start of its trainings."""

from __future__ import annotations

from pyarrow import fs

from cellray.errors import LedgerError, StorageError, StudyError, unknown
from cellray.ledger.files import MOST_BYTES
from cellray.ledger.records import Ledger
from cellray.storage import is_remote, open_storage, patiently, plain_reason, public, read_plain
from cellray.study import OF_A_STUDY, ModelConfig


def read_weights(address: str, *, storage: str) -> bytes:
    """The content of a file of weights, or of the best checkpoint of another study's trial.

    Args:
        address: A path, ``s3://…`` or ``study:NAME/LABEL/SEED``, as `model.weights` has it.
        storage: Where the ledgers of studies lie.

    Raises:
        StorageError: If it is in a bucket, which is away or refuses it, or in the storage, which can't be read.
        StudyError: If there is none.
    """
    if address.startswith(OF_A_STUDY):
        return _of_trial(address, storage)
    try:
        if not is_remote(address):
            return read_plain(address, MOST_BYTES)
        files, path = open_storage(address)
        return patiently(lambda: _content(files, path), public(address))
    except (OSError, ValueError) as error:
        words = (
            f"no weights can be read at {public(address)}: {getattr(error, 'strerror', None) or plain_reason(error)}"
        )
        is_away = is_remote(address) and isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        raise (StorageError if is_away else StudyError)(words) from None


def weights_of(model: ModelConfig, storage: str) -> bytes | None:
    """What a trial's training starts from, the same bytes as when the study was loaded; None: fresh weights.

    Raises:
        StudyError: If they have gone or changed.
    """
    if model.weights is None:
        return None
    content = read_weights(model.weights, storage=storage)
    model.check_weights(content)
    return content


def _of_trial(address: str, storage: str) -> bytes:
    name, _, rest = address.removeprefix(OF_A_STUDY).partition("/")
    if not name or "/" not in rest:
        raise StudyError(f"expected {OF_A_STUDY}NAME/LABEL/SEED, got {address!r}")
    try:
        ledger = Ledger(storage, name)
        keys = {f"{planned.label}/{planned.seed}": planned.key for planned in ledger.plan()}
        content = ledger.load_checkpoint(keys[rest], "best") if rest in keys else None
    except StorageError:
        raise
    except (LedgerError, OSError) as error:
        raise StudyError(f"{address}: {error}") from None
    if rest not in keys:
        raise StudyError(f"{address}: {unknown('trial', rest, keys)}")
    if content is None:
        raise StudyError(f"{address}: {ledger.uri}/trials/{keys[rest]} has no checkpoint `best`")
    return content


def _content(files: fs.FileSystem, path: str) -> bytes:
    with files.open_input_stream(path) as stream:
        return stream.read()
