"""Whether a Kubernetes cluster can run studies, found out before anything is submitted: `cellray cluster check`."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellray.errors import StudyError
from cellray.submission.kubernetes import TEMPLATE, Namespace, quantity, worker_groups
from cellray.submission.troubles import Manifest

OPERATOR = "kuberay-operator"
LEAST_KUBERNETES, LEAST_OPERATOR = (1, 34), (1, 7)
RIGHTS = (
    ("create", "rayjobs.ray.io"),
    ("delete", "rayjobs.ray.io"),
    ("list", "rayjobs.ray.io"),
    ("create", "configmaps"),
    ("list", "pods"),
    ("list", "events"),
    ("get", "pods/log"),
    ("create", "pods/exec"),
)
"""What `cellray submit` does there."""
POD_S = 180.0
"""A pod that hasn't answered for so long has no room or no image."""
STATUS_CHECK = "RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS"


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    state: Literal["good", "note", "bad"]
    what: str
    do: str = ""


def check_cluster(space: Namespace, overlay: Path | None) -> Iterator[Line]:
    """Look at each thing that a study needs, one line after the other.

    Args:
        space: Where cellray is, or will be, installed.
        overlay: A kustomization to be installed; None: what is installed.

    Raises:
        StudyError: If the API can't be asked at all, or the overlay can't be built.
    """
    yield _version(space)
    has_crds = "rayjobs.ray.io" in _names(space, "api-resources", "--api-group=ray.io", "--output=name")
    if has_crds:
        yield Line("good", "KubeRay's RayJob is known")
    else:
        yield Line("bad", "no KubeRay: the kind RayJob isn't known", "install its operator 1.7 (k8s/README.md)")
    yield from _asked(_operator, space)
    yield _rights(space)
    objects = _objects(space, overlay) if overlay is not None or has_crds else []
    rayjob = next((thing for thing in objects if thing["kind"] == "RayJob"), None)
    if rayjob is None:
        yield Line("bad", f"cellray isn't installed in namespace {space.name}", "give --overlay, or install it")
        return
    yield from _asked(_quota, space, rayjob)
    yield from _admission(space, objects if overlay is not None else [], rayjob)
    yield from _asked(_storage, space, objects)
    yield from _asked(_gpus, space, rayjob)
    yield from _asked(_api_ports, space, objects)
    if overlay is None:
        yield from _reach(space, rayjob)


def _asked(look: Callable[..., Iterator[Line]], space: Namespace, *more: object) -> Iterator[Line]:
    """What a look finds; what one may not see is said, and no fault."""
    try:
        yield from look(space, *more)
    except StudyError as error:
        yield Line("note", f"{look.__name__.strip('_').replace('_', ' ')}: can't be seen from here: {error}")


def _names(space: Namespace, *words: str) -> list[str]:
    return space.kubectl(*words).decode().split()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _version(space: Namespace) -> Line:
    found = json.loads(space.kubectl("version", "--output=json")).get("serverVersion") or {}
    text = str(found.get("gitVersion", "of unknown version"))
    if _numbers(text) < LEAST_KUBERNETES:
        return Line("note", f"Kubernetes {text}: tested from 1.34 on")
    return Line("good", f"Kubernetes {text}")


def _operator(space: Namespace) -> Iterator[Line]:
    found = space.read("deployments", "--all-namespaces", f"--selector=app.kubernetes.io/name={OPERATOR}")["items"]
    if not found:
        yield Line("bad", "no KubeRay operator runs", "install it (k8s/README.md)")
        return
    container = found[0]["spec"]["template"]["spec"]["containers"][0]
    tag = container["image"].rpartition(":")[2]
    ready = (found[0].get("status") or {}).get("readyReplicas", 0)
    if not ready:
        yield Line("bad", f"KubeRay's operator {tag} isn't ready", "kubectl describe deployment " + OPERATOR)
    elif _numbers(tag) < LEAST_OPERATOR:
        yield Line("bad", f"KubeRay's operator is {tag}", "upgrade it to 1.7 or newer")
    else:
        yield Line("good", f"KubeRay's operator {tag} runs")
    if STATUS_CHECK not in {variable["name"] for variable in container.get("env", [])}:
        yield Line(
            "note", "a lost head is noticed after 5 min only", f"set {STATUS_CHECK} for the operator, e.g. to 60"
        )


def _rights(space: Namespace) -> Line:
    asked = []
    for verb, what in RIGHTS:
        name, _, part = what.partition("/")
        resource, _, group = name.partition(".")
        place = {"namespace": space.name, "verb": verb, "group": group, "resource": resource, "subresource": part}
        spec = {"resourceAttributes": place}
        asked.append({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec})
    given = "\n".join(map(json.dumps, asked)).encode()
    answers = _documents(space.kubectl("create", "--filename=-", "--output=json", given=given))
    missing = [f"{verb} {what}" for (verb, what), answer in zip(RIGHTS, answers, strict=True)
               if not answer["status"]["allowed"]]  # fmt: skip
    if missing:
        return Line("bad", f"you may not {', '.join(missing)} in {space.name}", "ask who keeps the cluster for a role")
    return Line("good", f"you may do in {space.name} what submitting needs")


def _objects(space: Namespace, overlay: Path | None) -> list[Manifest]:
    """What would be installed, or the RayJob that is."""
    if overlay is None:
        return list(space.read("rayjobs.ray.io", f"--selector={TEMPLATE}=true")["items"])
    text = space.kubectl("kustomize", str(overlay))
    # kubectl turns YAML into JSON: no other reader of it is needed here
    made = space.kubectl("create", "--dry-run=client", "--validate=false", "--filename=-", "--output=json", given=text)
    return _documents(made)


def _documents(text: bytes) -> list[Manifest]:
    """The objects that kubectl printed, one after the other or as a list."""
    decoder, rest = json.JSONDecoder(), text.decode().strip()
    found: list[Manifest] = []
    while rest:
        thing, end = decoder.raw_decode(rest)
        found += thing["items"] if thing.get("kind") == "List" else [thing]
        rest = rest[end:].strip()
    return found


def _groups_of(rayjob: Manifest) -> list[tuple[str, Manifest]]:
    """Name and pod template of the head and each worker group."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [("head", cluster["headGroupSpec"]), *((g["groupName"], g) for g in cluster.get("workerGroupSpecs", []))]
    return [(name, group["template"]) for name, group in groups]


def _requested(pod: Manifest) -> dict[str, float]:
    """What a pod asks for, as a quota counts it."""
    total: dict[str, float] = {"pods": 1.0}
    for container in pod["spec"]["containers"]:
        for part in ("requests", "limits"):
            for name, amount in ((container.get("resources") or {}).get(part) or {}).items():
                total[f"{part}.{name}"] = total.get(f"{part}.{name}", 0.0) + quantity(amount)
    return total


def _quota(space: Namespace, rayjob: Manifest) -> Iterator[Line]:
    found = space.read("resourcequotas")["items"]
    if not found:
        yield Line("good", "no quota limits the namespace")
    (_, head), *workers = _groups_of(rayjob)
    for quota in found:
        status = quota.get("status") or {}
        hard = status.get("hard") or quota["spec"].get("hard") or {}
        free = {name: quantity(hard[name]) - quantity((status.get("used") or {}).get(name, 0)) for name in hard}
        short = []
        for group, worker in workers:
            need = _requested(head)
            for name, amount in _requested(worker).items():
                need[name] = need.get(name, 0.0) + amount
            short += [f"{name} for a {group} worker" for name in free if need.get(name, 0.0) > free[name]]
        name = quota["metadata"]["name"]
        if short:
            yield Line("bad", f"quota {name} has no room left: {', '.join(short)}", "wait for others, or raise it")
        else:
            yield Line("good", f"quota {name} has room for a head and a worker of each group")


def _admission(space: Namespace, objects: list[Manifest], rayjob: Manifest) -> Iterator[Line]:
    """A dry run by the server itself: of what would be applied, and of each pod that would come of it."""
    refused = []
    for thing in objects:
        words = ("apply", "--server-side", "--dry-run=server", "--force-conflicts", "--filename=-")
        try:
            space.kubectl(*words, given=json.dumps(thing).encode())
        except StudyError as error:
            refused.append(f"{thing['kind']} {thing['metadata']['name']}: {error}")
    pods = [*_groups_of(rayjob), ("submitter", rayjob["spec"].get("submitterPodTemplate"))]
    for name, template in pods:
        if template is not None:
            spec = {**template["spec"], "serviceAccountName": "default"}  # that of the overlay may not be there yet
            metadata = {"generateName": f"check-{name}-", "labels": (template.get("metadata") or {}).get("labels", {})}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            try:
                space.kubectl("create", "--dry-run=server", "--filename=-", given=json.dumps(pod).encode())
            except StudyError as error:
                refused.append(f"pod of {name}: {error}")
    if any("namespaces" in text and "not found" in text for text in refused):
        yield Line("bad", f"there is no namespace {space.name}", "kubectl apply -f k8s/base/namespace.yaml")
        return
    for text in refused:
        yield Line("bad", f"refused: {text}", "change the overlay, or what the cluster admits")
    if not refused:
        yield Line("good", "admission takes every object and every pod (server-side dry run)")


def _storage(space: Namespace, objects: list[Manifest]) -> Iterator[Line]:
    claims = [
        claim for thing in objects for claim in (thing.get("spec") or {}).get("volumeClaimTemplates", [])
        if not claim["spec"].get("storageClassName")
    ]  # fmt: skip
    classes = space.read("storageclasses")["items"]
    mark = "storageclass.kubernetes.io/is-default-class"
    default = [c["metadata"]["name"] for c in classes if (c["metadata"].get("annotations") or {}).get(mark) == "true"]
    if default:
        yield Line("good", f"the storage class {default[0]} serves volumes")
    elif claims:
        yield Line("bad", "no default storage class for the volumes of PostgreSQL and SeaweedFS", "name one by a patch")
    else:
        yield Line("note", "no default storage class")


def _gpus(space: Namespace, rayjob: Manifest) -> Iterator[Line]:
    wanted = [g for g in worker_groups(rayjob["spec"]["rayClusterSpec"]) if g["GPU"]]
    nodes = space.read("nodes")["items"]
    n = sum(
        quantity(amount)
        for node in nodes
        for name, amount in ((node.get("status") or {}).get("allocatable") or {}).items()
        if name.endswith("/gpu")
    )
    if not wanted:
        yield Line("good", f"{len(nodes)} nodes; no group of workers asks for GPUs")
    elif n:
        yield Line("good", f"{len(nodes)} nodes with {n:g} GPUs")
    else:
        words = "a node pool that grows from zero may still bring one, else install the device plugin"
        yield Line("note", f"no node has a GPU now, and group {wanted[0]['name']} asks for one", words)


def _api_ports(space: Namespace, objects: list[Manifest]) -> Iterator[Line]:
    """Whether the network policies let Ray's autoscaler reach the API server at the ports that it has."""
    policies = [thing for thing in objects if thing["kind"] == "NetworkPolicy"]
    if not policies:
        policies = space.read("networkpolicies.networking.k8s.io")["items"]
    found = next((policy for policy in policies if policy["metadata"]["name"] == "ray-autoscaler"), None)
    if found is None:
        yield Line("note", "no network policy named ray-autoscaler: nothing of ours limits the pods")
        return
    allowed = {port.get("port") for rule in found["spec"]["egress"] for port in rule.get("ports", [])}
    subsets = space.read("endpoints", "kubernetes", "--namespace=default").get("subsets") or []
    ports = {port["port"] for subset in subsets for port in subset.get("ports", [])}
    if closed := sorted(ports - allowed):
        words = f"add port {closed[0]} to ray-autoscaler in base/network.yaml"
        yield Line("bad", f"the API server listens at {closed[0]}, which the network policies close", words)
    else:
        yield Line("good", f"the network policies leave the API server open ({', '.join(map(str, sorted(ports)))})")


def _reach(space: Namespace, rayjob: Manifest) -> Iterator[Line]:
    """Start a pod like the head's, which tells what it reaches."""
    (_, head), *_ = _groups_of(rayjob)
    name = f"cellray-check-{uuid.uuid4().hex[:5]}"
    spec = deepcopy(head["spec"])
    container = spec["containers"][0]
    container["command"] = ["python", "-c", "from cellray.submission.reach import tell_reach; tell_reach()"]
    container["resources"] = {part: {"cpu": "500m", "memory": "512Mi"} for part in ("requests", "limits")}
    for key in ("ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"):
        container.pop(key, None)
    spec |= {"containers": [container], "restartPolicy": "Never", "activeDeadlineSeconds": int(POD_S)}
    labels = {**(head.get("metadata") or {}).get("labels", {}), "ray.io/node-type": "head"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
    try:
        space.create(pod)
    except StudyError as error:
        yield Line("bad", f"a pod like the head's isn't taken: {error}", "see the lines above")
        return
    try:
        until = time.monotonic() + POD_S
        phase = ""
        while phase not in ("Succeeded", "Failed") and time.monotonic() < until:
            time.sleep(1.0)
            phase = str((space.read("pods", name).get("status") or {}).get("phase"))
        said = space.kubectl("logs", name).decode().strip().splitlines() if phase in ("Succeeded", "Failed") else []
    finally:
        space.kubectl("delete", "pods", name, "--wait=false", "--ignore-not-found")
    if not said or not said[-1].startswith("{"):
        words = said[-1] if said else f"it is {phase or 'not there'} after {POD_S:g} s"
        yield Line("bad", f"a pod like the head's doesn't answer: {words}", "kubectl get events; image, node pool")
        return
    for part, problem in json.loads(said[-1]).items():
        if problem:
            yield Line("bad", f"a pod doesn't reach {part}: {problem}", "network policies, Secrets, services")
        else:
            yield Line("good", f"a pod reaches {part}")
