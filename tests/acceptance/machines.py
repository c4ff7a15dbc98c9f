"""Several machines on this one: each with its own address, host name, processes, /tmp and /dev/shm, on one network.

Kernel namespaces are all there is to them, so they vanish with their processes. The process that makes them must be
alone in a network namespace itself (`make acceptance` sees to that): there lies the bridge, and what listens at
`HERE` is a server that all machines reach.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

HERE = "10.77.0.1"
_BRIDGE = "machines"
_NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
_LIFE = """
set -e
hostname "$1"
mount -t tmpfs -o size=75% tmpfs /dev/shm
mount -t tmpfs tmpfs /mnt
for kept in $2; do
    case "$kept" in /tmp/*) mkdir -p "/mnt/${kept#/tmp/}"; mount --rbind "$kept" "/mnt/${kept#/tmp/}" ;; esac
done
mount --rbind /mnt /tmp
chmod 1777 /tmp
until ip -4 address show eth0 2>/dev/null | grep -q inet; do sleep 0.05; done
shift 2
exec "$@"
"""
"""What a machine does: its name, folders of /tmp that it shares with this one, and the command that is its life."""


def make_network() -> None:
    """Make the bridge, in this process's network namespace."""
    for words in (
        "link set lo up",
        f"link add {_BRIDGE} type bridge",
        f"address add {HERE}/24 dev {_BRIDGE}",
        f"link set {_BRIDGE} up",
    ):
        _ip(words)


def _ip(words: str, *within: str) -> None:
    subprocess.run([*within, "ip", *words.split()], check=True)


class Machine:
    """One machine, from its start to its death.

    Args:
        number: From 11 to 254: the last part of its address.
        life: The command that it runs; the machine ends with it.
        kept: Folders that it sees as they are here, even in /tmp: the code, and where tests have a look.
        environment: In addition to this process's own.
        log: Gets what the command says.
    """

    def __init__(
        self, number: int, life: Sequence[str], *, kept: Sequence[Path], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name, self.address, self._link = f"machine{number}", f"10.77.0.{number}", f"link{number}"
        folders = shlex.join({str(folder) for folder in (*kept, Path(sys.prefix), Path(__file__).parents[2])})
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc",
                 "bash", "-c", _LIFE, "bash", self.name, folders, *life],
                stdout=stream, stderr=stream, start_new_session=True, env={**os.environ, **environment},
            )  # fmt: skip
        pid = self._process.pid
        while _network(pid) == _network(os.getpid()):
            time.sleep(0.02)
        _ip(f"link add {self._link} type veth peer name eth0 netns {pid}")
        _ip(f"link set {self._link} master {_BRIDGE} up")
        inside = ("nsenter", f"--target={pid}", "--net")
        for words in ("link set lo up", f"address add {self.address}/24 dev eth0", "link set eth0 up"):
            _ip(words, *inside)

    def runs(self) -> bool:
        return self._process.poll() is None

    def within(self) -> list[str]:
        """What to put before a command to run it on this machine."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return ["nsenter", f"--target={children[0]}", *_NAMESPACES, "--wdns=/tmp"]

    def kill(self) -> None:
        """Pull its plug."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def cut(self) -> None:
        """Pull its network cable."""
        _ip(f"link set {self._link} down")

    def join(self) -> None:
        """Plug it in again."""
        _ip(f"link set {self._link} up")


def _network(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")
