"""Sweeps on a cluster of Ray's own autoscaler (version 2), whose head has no CPUs; what came of them, as JSON.

`ray.cluster_utils.AutoscalingCluster` ends every Ray of the machine before it starts its own, listens at Ray's usual
ports and wants a file that Ray's wheel lacks. So this runs alone: in namespaces of its own, where `ALONE` puts it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ray
from conftest import skip_or_fail
from disturb import Event, kill, parent, read_events, title, watching
from ray.cluster_utils import AutoscalingCluster

from cellray.study import Study

ALONE = r"""
set -e
ip link set lo up
mount -t tmpfs tmpfs /dev/shm
mkdir -p /tmp/ray /dev/shm/ray
mount --bind /dev/shm/ray /tmp/ray
cp -r "$1" /dev/shm/fake_multi_node
mv "$2/example.yaml" /dev/shm/fake_multi_node
mount --bind /dev/shm/fake_multi_node "$1"
"$3" "$4" "$2"
exit $?
"""
"""For bash: Ray's folder of the fake provider, a folder of this test with the missing file, Python, and this script."""
NAMESPACES = ("--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--ipc", "--mount")
GROUPS = {"cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}}
NAMED = [{"name": "cpu", "nodes": 2, "CPU": 1}]
IDLE_MINUTES = 0.08
LONG, HELD_AT = "Dice/0", 20
"""The trial that still runs when the other has ended, and the step at which it waits until its neighbour is gone."""
MISSING_FILE = {
    "cluster_name": "fake",
    "max_workers": 4,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": IDLE_MINUTES,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {},
    "head_node_type": "ray.head.default",
    "auth": {"ssh_user": "nobody"},
    "file_mounts": {},
    "cluster_synced_files": [],
    **{f"{who}_commands": [] for who in ("initialization", "setup", "head_setup", "worker_setup")},
    **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
}


def run_alone(folder: Path, plain: Study, too_large: Study) -> dict[str, Any]:
    """Sweep one study on such a cluster, and then one that no group can hold, with the worker groups named.

    Returns:
        What `main` found.
    """
    if os.geteuid() != 0 or subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode:
        skip_or_fail("Ray's autoscaler is tried in namespaces of its own: run this as root, with unshare and ip.")
    for number, study in enumerate((plain, too_large)):
        (folder / f"{number}.yaml").write_text(study.dump_yaml())
    (folder / "example.yaml").write_text(json.dumps(MISSING_FILE))
    provider = Path(ray.__file__).parent / "autoscaler/_private/fake_multi_node"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": str(folder), "TMPDIR": str(folder), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    env |= {"RAY_TMPDIR": "/tmp", "RAY_USAGE_STATS_ENABLED": "0", "CELLRAY_CACHE": str(folder / "cache")}
    env["RAY_worker_niceness"] = (
        "0"  # else trials wait for all that other tests compute, and a process takes minutes to end
    )
    done = subprocess.run(
        ["unshare", *NAMESPACES, "bash", "-c", ALONE, "bash", str(provider), str(folder), sys.executable, __file__],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**env, "COLUMNS": "200"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return json.loads((folder / "found.json").read_text())


def main(folder: Path) -> None:
    """In the namespaces: write down what becomes of the studies, and of the cluster's nodes meanwhile."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    assert not any("raylet" in title(pid) for pid in pids if pid > 1), "another's Ray is in sight, and would be ended"
    cluster = AutoscalingCluster({"CPU": 0}, GROUPS, autoscaler_v2=True)
    os.environ |= watching(folder / "events.log")
    (folder / "events.log").touch()
    cluster.start()
    ray.init("auto", log_to_driver=False, logging_level="ERROR")

    def sweep(number: int, **env: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "cellray", "sweep", str(folder / f"{number}.yaml"), "--address", "auto"]
        with (folder / f"{number}.txt").open("wb") as said:
            return subprocess.Popen(
                [*words, "--storage", str(folder / "studies")], stdout=said, stderr=said, cwd=folder,
                env={**os.environ, **env},
            )  # fmt: skip

    def n_nodes() -> int:
        return sum(node["Alive"] for node in ray.nodes())

    def last_step(trial: str) -> tuple[int, Event | None]:
        steps = [event for event in read_events(folder) if event.what.startswith(f"{trial}/")]
        return (int(steps[-1].what.rpartition("/")[2]), steps[-1]) if steps else (-1, None)

    started, course = time.time(), [n_nodes()]
    first = sweep(0)
    held, found = 0, dict[str, Any]()
    while first.poll() is None:
        if (n := n_nodes()) != course[-1]:
            course.append(n)
        n_steps, event = last_step(LONG)
        if not held and event is not None and n_steps >= HELD_AT:
            os.kill(held := event.pid, signal.SIGSTOP)  # so that nothing is burnt while the other node gets idle
        elif held and "taken_back_s" not in found:
            waited_s = time.time() - max(event.seconds for event in read_events(folder))
            assert waited_s < 60, f"no node was taken back while a trial ran: {course}"
            if course[-2:] == [3, 2]:
                found["taken_back_s"] = waited_s
                kill(parent(held))  # and now its own node, too
        time.sleep(0.05)
    begun = [event.seconds for event in read_events(folder) if event.word == "begin"]
    found |= {"code": first.returncode, "said": (folder / "0.txt").read_text(), "course": course}
    found["first_trial_s"] = min(begun, default=0.0) - started
    ended = time.monotonic()
    refused = sweep(1, CELLRAY_WORKER_GROUPS=json.dumps(NAMED))
    while n_nodes() > 1 and time.monotonic() - ended < 60:
        time.sleep(0.5)
    found |= {"nodes": n_nodes(), "idle_s": time.monotonic() - ended}
    found |= {"refused_code": refused.wait(120), "refused": (folder / "1.txt").read_text()}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
