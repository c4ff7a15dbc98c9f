"""Starting a Ray of one's own: once more if it takes too long, and not if it can't be.

In a process without Ray: a start that fails ends what there is.
"""

from __future__ import annotations

import pytest

from cellray.errors import ClusterError, StudyError
from cellray.sweep import cluster as ray_cluster


@pytest.fixture
def begins(monkeypatch):
    """What each start raises, None if it succeeds."""
    found = []

    def start(options):
        if (error := found.pop(0)) is not None:
            raise error

    monkeypatch.setattr(ray_cluster, "_init", start)
    return found


@pytest.mark.parametrize("error", [RuntimeError("node timed out"), TimeoutError("no port"), ConnectionError("no")])
def test_that_takes_too_long_is_tried_twice(begins, error, capsys):
    begins += [error, None]
    ray_cluster._start({})
    assert not begins and "Trying once more" in capsys.readouterr().err
    begins += [error, error]
    with pytest.raises(ClusterError, match=r"Ray can't be started here: .*too busy"):
        ray_cluster._start({})


@pytest.mark.parametrize("error", [ValueError("/dev/shm is too small"), PermissionError("/tmp/ray")])
def test_that_can_not_succeed_is_tried_once(begins, error):
    begins += [error]
    with pytest.raises(StudyError, match="Ray can't be started here"):
        ray_cluster._start({})


def test_that_is_interrupted_is_not_tried_again(begins):
    begins += [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        ray_cluster._start({})
