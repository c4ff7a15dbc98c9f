"""What is wrong with a set of Kubernetes manifests: schemas, what KubeRay and Kueue check themselves, and references.

`problems` takes the objects of one installation, as kustomize builds them, and knows nothing of this project but what
the objects say of themselves. The thirteen rules are those of the schemas' README.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

Object = dict[str, Any]

CRDS = {
    "ray.io/v1/RayCluster": "raycluster",
    "ray.io/v1/RayJob": "rayjob",
    "ray.io/v1/RayService": "rayservice",
    "ray.io/v1/RayCronJob": "raycronjob",
    "kueue.x-k8s.io/v1beta2/ClusterQueue": "kueue-clusterqueue",
    "kueue.x-k8s.io/v1beta2/LocalQueue": "kueue-localqueue",
    "kueue.x-k8s.io/v1beta2/ResourceFlavor": "kueue-resourceflavor",
    "kueue.x-k8s.io/v1beta2/Topology": "kueue-topology",
    "kueue.x-k8s.io/v1beta2/WorkloadPriorityClass": "kueue-workloadpriorityclass",
}
CORE = ("k8s-core-1.34", "k8s-core-1.37")
CLUSTER_WIDE = ("Namespace", "ClusterQueue", "ResourceFlavor", "Topology", "WorkloadPriorityClass")
MOST_NAME = {"RayJob": 47, "RayCluster": 53, "RayService": 47, "RayCronJob": 36}
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
GATED = ("networkPolicy", "tlsOptions")
"""Need feature gates of KubeRay's operator that are off by default."""


@cache
def schema(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


@cache
def core_validator(folder: Path, version: str, kind: str) -> Draft202012Validator | None:
    found = schema(folder, version)
    if kind not in found["kinds"]:
        return None
    head = {"$schema": found["$schema"], "$ref": f"#/$defs/{found['kinds'][kind]}", "$defs": found["$defs"]}
    return Draft202012Validator(head)


def name_of(thing: Object) -> str:
    return f"{thing.get('kind')} {(thing.get('metadata') or {}).get('name')}"


def problems(objects: Sequence[Object], schemas: Path) -> list[str]:
    """Everything that is wrong, a sentence each."""
    found = []
    for thing in objects:
        found += [f"{name_of(thing)}: {text}" for text in _schema_problems(thing, schemas)]
    for thing in objects:
        if thing["kind"] == "RayJob":
            found += [f"{name_of(thing)}: {text}" for text in _rayjob_problems(thing)]
        if thing["kind"] in MOST_NAME:
            found += [f"{name_of(thing)}: {text}" for text in _ray_problems(thing)]
    pods = list(all_pods(objects))
    restricted = {
        thing["metadata"]["name"]
        for thing in objects
        if thing["kind"] == "Namespace"
        and (thing["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce") == "restricted"
    }
    for pod in pods:
        found += [f"{pod.where}: {text}" for text in _pod_problems(pod, schemas, pod.namespace in restricted)]
    return found + _reference_problems(objects, pods)


# Schemas.


def _schema_problems(thing: Object, schemas: Path) -> list[str]:
    kind = f"{thing.get('apiVersion')}/{thing.get('kind')}"
    if kind in CRDS:
        validators = [Draft202012Validator(schema(schemas, CRDS[kind]))]
    else:
        validators = [v for version in CORE if (v := core_validator(schemas, version, kind)) is not None]
        if len(validators) < len(CORE):
            return [f"unknown kind {kind}"]
    return [
        f"{'.'.join(map(str, error.absolute_path)) or 'top'}: {error.message[:200]}"
        for validator in validators
        for error in validator.iter_errors(thing)
    ]


# Rules of KubeRay and Kueue (the numbers are those of the schemas' README).


def _cluster_spec(thing: Object) -> Object:
    spec = thing["spec"]
    if thing["kind"] == "RayCronJob":
        spec = spec["jobTemplate"]
    return spec if thing["kind"] == "RayCluster" else spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or {}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _ray_problems(thing: Object) -> Iterator[str]:
    name, kind, cluster = thing["metadata"]["name"], thing["kind"], _cluster_spec(thing)
    if len(name) > MOST_NAME[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"rule 1: the name must be a DNS-1035 label of at most {MOST_NAME[kind]} characters"
    scales = bool(cluster.get("enableInTreeAutoscaling"))
    autoscaler = cluster.get("autoscalerOptions") or {}
    head, workers = cluster.get("headGroupSpec") or {}, cluster.get("workerGroupSpecs") or []
    ray = _version(cluster.get("rayVersion") or "0")
    for group in workers:
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if low is not None and high is not None and low > high:
            yield f"rule 5: group {group['groupName']}: minReplicas {low} above maxReplicas {high}"
        if not scales and (low is None or high is None):
            yield f"rule 5: group {group['groupName']}: without autoscaling it needs minReplicas and maxReplicas"
    is_v2 = scales and autoscaler.get("version") == "v2"
    for group in [head, *workers]:
        where = group.get("groupName", "head")
        policy = group["template"]["spec"].get("restartPolicy", "Always")
        if is_v2 and policy != "Never":
            yield f"rule 6: {where}: autoscaler v2 wants restartPolicy Never, not {policy}"
        if "idleTimeoutSeconds" in group and not is_v2:
            yield f"rule 6: {where}: idleTimeoutSeconds needs autoscaler v2"
        if "priority" in group and not (is_v2 and ray >= (2, 56, 0)):
            yield f"rule 6: {where}: priority needs autoscaler v2 and Ray 2.56"
        params = group.get("rayStartParams") or {}
        if group.get("resources") and any(key in params for key in ("num-cpus", "num-gpus", "memory", "resources")):
            yield f"rule 8: {where}: resources and rayStartParams both set resources"
        if "labels" in params:
            yield f"rule 8: {where}: labels don't belong into rayStartParams"
    auth = cluster.get("authOptions") or {}
    if auth.get("mode") == "token" and ray < (2, 52, 0):
        yield f"rule 7: token authentication needs Ray 2.52, not {cluster.get('rayVersion')}"
    if auth.get("enableK8sTokenAuth") and kind == "RayJob":
        yield "rule 7: enableK8sTokenAuth is refused for a RayJob"
    ft = cluster.get("gcsFaultToleranceOptions")
    if ft is not None:
        names = {env["name"] for c in head["template"]["spec"]["containers"] for env in c.get("env") or []}
        if names & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"}:
            yield "rule 9: gcsFaultToleranceOptions excludes REDIS_PASSWORD and RAY_REDIS_ADDRESS"
        marks = thing["metadata"].get("annotations") or {}
        if any(key.startswith(("ray.io/ft-enabled", "ray.io/external-storage-namespace")) for key in marks):
            yield "rule 9: gcsFaultToleranceOptions excludes the old annotations"
        if ft.get("backend") == "rocksdb":
            yield "rule 9: backend rocksdb needs a feature gate that is off by default"
    for name in GATED:
        if name in cluster:
            yield f"rule 9: {name} needs a feature gate that is off by default"
    queue = (thing["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
    if queue:
        elastic = (thing["metadata"].get("annotations") or {}).get("kueue.x-k8s.io/elastic-job") == "true"
        spec = thing["spec"]
        if kind == "RayJob" and not spec.get("shutdownAfterJobFinishes"):
            yield "rule 12: Kueue needs shutdownAfterJobFinishes"
        if spec.get("clusterSelector"):
            yield "rule 12: Kueue takes no clusterSelector"
        if scales and not elastic:
            yield 'rule 12: with autoscaling, Kueue wants the annotation kueue.x-k8s.io/elastic-job: "true"'
        if any(group["groupName"] == "head" for group in workers):
            yield "rule 12: no group may be called head"
        if len(workers) > 17:
            yield f"rule 12: at most 17 worker groups, not {len(workers)}"


def _rayjob_problems(thing: Object) -> Iterator[str]:
    spec = thing["spec"]
    mode = spec.get("submissionMode", "K8sJobMode")
    cluster = _cluster_spec(thing)
    deletion = spec.get("deletionStrategy") or {}
    rules = deletion.get("deletionRules") or []
    if mode not in MODES:
        yield f"rule 2: submissionMode {mode!r}, expected one of {', '.join(MODES)}"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "rule 3: ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if rules and (spec.get("shutdownAfterJobFinishes") or spec.get("ttlSecondsAfterFinished")):
        yield "rule 3: deletionRules excludes shutdownAfterJobFinishes and ttlSecondsAfterFinished"
    policies = [rule.get("policy") for rule in rules]
    policies += [(deletion.get(when) or {}).get("policy") for when in ("onSuccess", "onFailure")]
    if "DeleteWorkers" in policies and cluster.get("enableInTreeAutoscaling"):
        yield "rule 4: DeleteWorkers doesn't go with autoscaling"
    if mode == "SidecarMode":
        for name in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if spec.get(name):
                yield f"rule 10: SidecarMode excludes {name}"
        if cluster and cluster["headGroupSpec"]["template"]["spec"].get("restartPolicy") != "Never":
            yield "rule 10: SidecarMode wants the head's restartPolicy Never"
    if spec.get("backoffLimit") and (spec.get("clusterSelector") or mode == "InteractiveMode"):
        yield "rule 11: backoffLimit excludes clusterSelector and InteractiveMode"


# Pods.


@dataclass(frozen=True)
class Pod:
    where: str
    namespace: str
    labels: dict[str, str]
    spec: Object
    meta: Object
    extra: tuple[Object, ...] = ()
    """Containers that an operator adds to it: name and securityContext."""
    claims: tuple[str, ...] = ()
    """Volumes that its controller adds."""
    has_network_name: str = ""


def all_pods(objects: Sequence[Object]) -> Iterator[Pod]:
    """Every pod that these objects become."""
    for thing in objects:
        where, space = name_of(thing), thing.get("metadata", {}).get("namespace", "default")
        spec = thing.get("spec") or {}
        if thing["kind"] == "Pod":
            meta = thing["metadata"]
            yield Pod(where, space, meta.get("labels") or {}, spec, meta)
        if thing["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            claims = tuple(claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates") or [])
            yield _pod(where, space, spec["template"], claims=claims)
        if thing["kind"] == "CronJob":
            yield _pod(where, space, spec["jobTemplate"]["spec"]["template"])
        if thing["kind"] in MOST_NAME:
            cluster = _cluster_spec(thing)
            if spec.get("submitterPodTemplate"):
                yield _pod(f"{where} submitter", space, spec["submitterPodTemplate"])
            elif thing["kind"] == "RayJob" and spec.get("submissionMode", "K8sJobMode") == "K8sJobMode":
                default = {"spec": {"containers": [{"name": "ray-job-submitter", "image": "ray"}]}}
                yield _pod(f"{where} submitter (KubeRay's default)", space, default)
            options = cluster.get("autoscalerOptions") or {}
            autoscaler = {"name": "autoscaler", "securityContext": options.get("securityContext")}
            extra = (autoscaler,) if cluster.get("enableInTreeAutoscaling") else ()
            if cluster.get("headGroupSpec"):
                yield _pod(
                    f"{where} head", space, cluster["headGroupSpec"]["template"], {"ray.io/node-type": "head"}, extra
                )
            for group in cluster.get("workerGroupSpecs") or []:
                labels = {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
                yield _pod(f"{where} group {group['groupName']}", space, group["template"], labels)


def _pod(
    where: str,
    namespace: str,
    template: Object,
    labels: dict[str, str] | None = None,
    extra: tuple[Object, ...] = (),
    claims: tuple[str, ...] = (),
) -> Pod:
    meta = template.get("metadata") or {}
    return Pod(
        where, namespace, {**(meta.get("labels") or {}), **(labels or {})}, template["spec"], meta, extra, claims
    )


def containers(pod: Pod) -> list[Object]:
    return [*(pod.spec.get("initContainers") or []), *pod.spec["containers"]]


UNITS = {"": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{letter}i": 2 ** (10 * (i + 1)) for i, letter in enumerate("KMGT")
}


def quantity(text: Any) -> Decimal:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()  # type: ignore[union-attr]
    return Decimal(number) * UNITS[unit]


def _pod_problems(pod: Pod, schemas: Path, restricted: bool) -> Iterator[str]:
    meta = {"name": "pod", **{key: pod.meta[key] for key in ("labels", "annotations") if key in pod.meta}}
    wrapped = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod.spec}
    for version in CORE:
        validator = core_validator(schemas, version, "v1/Pod")
        assert validator is not None
        for error in validator.iter_errors(wrapped):
            yield f"rule 13: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
    volumes = {volume["name"] for volume in pod.spec.get("volumes") or []} | set(pod.claims)
    for container in containers(pod):
        who = container["name"]
        for mount in container.get("volumeMounts") or []:
            if mount["name"] not in volumes:
                yield f"rule 13: {who} mounts the volume {mount['name']}, which the pod doesn't have"
        resources = container.get("resources") or {}
        asked, most = resources.get("requests") or {}, resources.get("limits") or {}
        for name, value in asked.items():
            if name in most and quantity(value) > quantity(most[name]):
                yield f"rule 13: {who}: requests {value} of {name}, above its limit {most[name]}"
        gpus = [part.get("nvidia.com/gpu") for part in (asked, most)]
        if any(gpus) and (gpus[0] not in (None, gpus[1]) or gpus[1] is None or quantity(gpus[1]) % 1):
            yield f"rule 13: {who}: GPUs are whole, and request equals limit, got {gpus}"
    used = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts") or []}
    for name in sorted(volumes - used):
        yield f"the volume {name} isn't mounted"
    if not restricted:
        return
    context = pod.spec.get("securityContext") or {}
    if context.get("runAsNonRoot") is not True:
        yield "rule 13: the namespace is restricted: runAsNonRoot must be true"
    if (context.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
        yield "rule 13: the namespace is restricted: seccompProfile must be RuntimeDefault"
    for container in [*containers(pod), *pod.extra]:
        security = container.get("securityContext") or {}
        if security.get("allowPrivilegeEscalation") is not False:
            yield f"rule 13: the namespace is restricted: {container['name']}: allowPrivilegeEscalation must be false"
        if (security.get("capabilities") or {}).get("drop") != ["ALL"]:
            yield f"rule 13: the namespace is restricted: {container['name']}: capabilities must drop ALL"


# References.


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector chooses something with these labels."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for term in selector.get("matchExpressions") or []:
        value, values = labels.get(term["key"]), term.get("values") or []
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[term["operator"]]
        if not holds:
            return False
    return True


def _ports(pod: Pod) -> dict[str, int]:
    """Number of each of a pod's ports, by name and by number."""
    ports = [port for container in containers(pod) for port in container.get("ports") or []]
    return {key: p["containerPort"] for p in ports for key in (p.get("name"), str(p["containerPort"])) if key}


def _reference_problems(objects: Sequence[Object], pods: Sequence[Pod]) -> list[str]:
    found = []
    namespaces = {thing["metadata"]["name"] for thing in objects if thing["kind"] == "Namespace"}
    have = {(t["kind"], t["metadata"].get("namespace", "default"), t["metadata"]["name"]): t for t in objects}
    if len(have) < len(objects):
        found.append("two objects have the same kind and name")
    for thing in objects:
        space = thing["metadata"].get("namespace")
        if thing["kind"] not in CLUSTER_WIDE and space not in namespaces:
            found.append(f"{name_of(thing)}: there is no namespace {space!r}")
    for pod in pods:
        found += [f"{pod.where}: {text}" for text in _pod_references(pod, have)]
    for (kind, space, name), thing in have.items():
        spec = thing.get("spec") or {}
        if kind == "Service":
            chosen = [p for p in pods if p.namespace == space and matches({"matchLabels": spec["selector"]}, p.labels)]
            if not chosen:
                found.append(f"Service {name}: its selector chooses no pod")
            for port in spec["ports"]:
                wanted = str(port.get("targetPort", port["port"]))
                found += [f"Service {name}: {p.where} has no port {wanted}" for p in chosen if wanted not in _ports(p)]
        if kind in ("Deployment", "StatefulSet"):
            if not matches(spec["selector"], spec["template"]["metadata"].get("labels") or {}):
                found.append(f"{kind} {name}: its selector doesn't choose its own pods")
            if kind == "StatefulSet" and ("Service", space, spec["serviceName"]) not in have:
                found.append(f"StatefulSet {name}: there is no service {spec['serviceName']}")
        if kind == "NetworkPolicy":
            found += [f"NetworkPolicy {name}: {text}" for text in _policy_problems(spec, space, pods)]
        if kind == "LocalQueue" and ("ClusterQueue", "default", spec["clusterQueue"]) not in have:
            found.append(f"LocalQueue {name}: there is no ClusterQueue {spec['clusterQueue']}")
        if kind == "ClusterQueue":
            for flavor in (f["name"] for group in spec["resourceGroups"] for f in group["flavors"]):
                if ("ResourceFlavor", "default", flavor) not in have:
                    found.append(f"ClusterQueue {name}: there is no ResourceFlavor {flavor}")
        queue = (thing["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
        if queue and ("LocalQueue", space, queue) not in have:
            found.append(f"{kind} {name}: there is no LocalQueue {queue}")
    return found


def _pod_references(pod: Pod, have: dict[tuple[str, str, str], Object]) -> Iterator[str]:
    account = pod.spec.get("serviceAccountName", "default")
    if account != "default" and ("ServiceAccount", pod.namespace, account) not in have:
        yield f"there is no service account {account}"

    def keys(kind: str, name: str) -> set[str] | None:
        thing = have.get((kind, pod.namespace, name))
        return None if thing is None else {*(thing.get("data") or {}), *(thing.get("stringData") or {})}

    for volume in pod.spec.get("volumes") or []:
        for kind, source, field in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
            if source in volume and keys(kind, volume[source][field]) is None:
                yield f"there is no {kind} {volume[source][field]}"
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim and ("PersistentVolumeClaim", pod.namespace, claim) not in have:
            yield f"there is no PersistentVolumeClaim {claim}"
    for container in containers(pod):
        for env in container.get("env") or []:
            origin = env.get("valueFrom") or {}
            for kind, source in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                if source in origin:
                    known = keys(kind, origin[source]["name"])
                    if known is None or origin[source]["key"] not in known:
                        yield f"there is no key {origin[source]['key']} in a {kind} {origin[source]['name']}"
            for text in _texts(env, have, pod.namespace):
                yield from _address_problems(text, pod.namespace, have)
        ports = _ports(pod)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            for way in ("httpGet", "tcpSocket"):
                port = ((container.get(probe) or {}).get(way) or {}).get("port")
                if port is not None and str(port) not in ports:
                    yield f"{container['name']}: its {probe} asks port {port}, which it doesn't have"


def _texts(env: Object, have: dict[tuple[str, str, str], Object], namespace: str) -> Iterator[str]:
    """What a variable holds, if a manifest says it."""
    origin = (env.get("valueFrom") or {}).get("configMapKeyRef")
    if origin:
        yield str(((have.get(("ConfigMap", namespace, origin["name"])) or {}).get("data") or {}).get(origin["key"], ""))
    if env["name"].endswith("HOST"):
        yield f"host://{env.get('value')}"
    yield str(env.get("value", ""))


def _address_problems(text: str, namespace: str, have: dict[tuple[str, str, str], Object]) -> Iterator[str]:
    """Addresses of services inside of the cluster: names without a dot."""
    for scheme, host, port in re.findall(r"(http|https|host)://([a-z0-9-]+)(?::(\d+))?(?=[/\s]|$)", text):
        service = have.get(("Service", namespace, host))
        if service is None:
            yield f"{text!r} names the service {host}, which isn't there"
        elif scheme != "host" and int(port or 80) not in [p["port"] for p in service["spec"]["ports"]]:
            yield f"{text!r}: the service {host} has no port {port or 80}"


def _policy_problems(spec: Object, space: str, pods: Sequence[Pod]) -> Iterator[str]:
    inside = [pod for pod in pods if pod.namespace == space]
    chosen = [pod for pod in inside if matches(spec["podSelector"], pod.labels)]
    if not chosen:
        yield "it chooses no pod"
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        if spec.get(direction) and direction.capitalize() not in spec["policyTypes"]:
            yield f"{direction} is written, but not in policyTypes"
        for rule in spec.get(direction) or []:
            near: list[Pod] = []
            for peer in rule.get(peers) or []:
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    selected = [pod for pod in inside if matches(peer["podSelector"], pod.labels)]
                    near += selected
                    if not selected:
                        yield f"{direction}: {peer['podSelector']} chooses no pod"
            listening = chosen if direction == "ingress" else near
            for port in rule.get("ports") or []:
                for pod in listening:
                    if str(port["port"]) not in _ports(pod) and not _any_port(pod, listening, str(port["port"])):
                        yield f"{direction}: {pod.where} has no port {port['port']}"


def _any_port(pod: Pod, others: Sequence[Pod], port: str) -> bool:
    """Whether a pod of the same installation's Ray has it: head and workers share a label, and ports differ."""
    kind = pod.labels.get("app.kubernetes.io/component")
    return any(port in _ports(o) for o in others if kind and o.labels.get("app.kubernetes.io/component") == kind)
