"""Sweeps on a cluster of Ray's own autoscaler (version 2), whose head has no CPUs; what came of them, as JSON.

`ray.cluster_utils.AutoscalingCluster` ends every Ray of the machine before it starts its own, listens at Ray's usual
ports and wants a file that Ray's wheel lacks. So this runs alone: in namespaces of its own, where `ALONE` puts it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import ray
from disturb import read_events, title, watching
from ray.cluster_utils import AutoscalingCluster

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


def main(folder: Path) -> None:
    assert not any(
        "raylet" in title(int(entry.name)) for entry in Path("/proc").glob("[0-9]*") if int(entry.name) > 1
    ), "another's Ray is in sight, and would be ended"
    cluster = AutoscalingCluster({"CPU": 0}, GROUPS, autoscaler_v2=True)
    os.environ |= watching(folder / "events.log")
    cluster.start()

    def sweep(name: str, **env: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "cellray", "sweep", str(folder / f"{name}.yaml"), "--address", "auto"]
        return subprocess.Popen(
            [*words, "--storage", str(folder / "studies")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=folder, env={**os.environ, **env},
        )  # fmt: skip

    started = time.time()
    first = sweep("tiny")
    found = {"said": first.communicate(timeout=120)[0], "code": first.returncode}
    begun = [event for event in read_events(folder) if event.word == "begin"]
    found["first_trial_s"] = min((event.seconds for event in begun), default=0.0) - started
    ended = time.monotonic()
    refused = sweep("gpu", CELLRAY_WORKER_GROUPS=json.dumps(NAMED))
    ray.init("auto", log_to_driver=False, logging_level="ERROR")
    nodes = len(ray.nodes())  # those that have gone, too
    found["nodes_ever"] = nodes
    while nodes > 1 and time.monotonic() - ended < 40:
        time.sleep(0.5)
        nodes = sum(node["Alive"] for node in ray.nodes())
    found |= {"nodes": nodes, "idle_s": time.monotonic() - ended}
    found |= {"refused": refused.communicate()[0], "refused_code": refused.returncode}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
