"""A study as a RayJob of Kubernetes, copied from the one that the installation brought (`k8s/`), through kubectl."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from cellray.errors import StudyError
from cellray.places import GROUPS_VARIABLE
from cellray.processes import unbroken
from cellray.submission.parcel import Parcel
from cellray.submission.reports import untar_report
from cellray.submission.troubles import ENDED, Incident, Manifest, end_of, pod_incidents

TEMPLATE = "cellray/template"
STUDY_LABEL = "cellray/study"
STUDY_VOLUME = "study"
"""Volume of the head that holds the study; mounted where the template's entrypoint reads it."""
MAX_NAME = 47
"""Characters of a RayJob's name, which its cluster and pods extend."""
FAILED_TRIALS = 3
"""Exit code of a sweep that ended with failed trials."""
TRIES_PAUSES_S = (15, 60, 240)
"""A sweep that broke off (exit code other than 0, 2 and 3) is started again in its cluster after each of these."""
RESUBMISSIONS = 3
"""New clusters that a study gets after what passes, such as a lost head."""
POLL_S = 3.0
RAYJOB_AWAY_S = 300.0
"""A Kubernetes API that doesn't answer for so long isn't asked any more."""


class Namespace:
    """The part of a Kubernetes cluster where cellray is installed.

    Args:
        context: Of kubectl's configuration; None: the current one.
        name: The namespace.

    Raises:
        StudyError: If there is no kubectl here.
    """

    def __init__(self, context: str | None, name: str) -> None:
        found = shutil.which("kubectl")
        if found is None:
            raise StudyError(
                "submitting to Kubernetes needs kubectl; for a plain Ray cluster give --address http://HOST:8265"
            )
        self.name = name
        self.words = [found, *([f"--context={context}"] if context else []), f"--namespace={name}"]

    def command(self, *words: str) -> str:
        """A kubectl command for the user to give."""
        return shlex.join(["kubectl", *self.words[1:], *words])

    def kubectl(self, *words: str, given: bytes | None = None) -> bytes:
        """What a kubectl command prints.

        Raises:
            StudyError: With what it says if it fails.
        """
        done = subprocess.run([*self.words, *words], input=given, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise StudyError(f"kubectl {words[0]}: {said[-1]}")
        return done.stdout

    def read(self, *words: str) -> Manifest:
        """The object, or list of objects, that `kubectl get` prints."""
        return json.loads(self.kubectl("get", *words, "--output=json"))

    def create(self, manifest: Manifest) -> Manifest:
        """Make an object; returns it as the cluster stored it."""
        text = self.kubectl("create", "--filename=-", "--output=json", given=json.dumps(manifest).encode())
        return json.loads(text)

    def jobs(self, study: str) -> list[Manifest]:
        """The RayJobs of studies of that name, the newest last."""
        found = self.read("rayjobs.ray.io", f"--selector={STUDY_LABEL}={label_of(study)}")["items"]
        return sorted(found, key=lambda job: str(job["metadata"].get("creationTimestamp", "")))

    def running_job(self, study: str) -> str | None:
        """The RayJob of a study of that name that hasn't ended, if there is one."""
        for job in self.jobs(study):
            if _status(job).get("jobDeploymentStatus") not in ENDED:
                return str(job["metadata"]["name"])
        return None

    def last_end(self, study: str) -> Incident | None:
        """What the newest RayJob of a study failed of, if it has ended."""
        jobs = self.jobs(study)
        status = _status(jobs[-1]) if jobs else {}
        return end_of(jobs[-1]["metadata"]["name"], status) if status.get("jobDeploymentStatus") in ENDED else None

    def delete(self, job: str) -> None:
        """Remove a RayJob, and with it its cluster, pods and study."""
        self.kubectl("delete", "rayjobs.ray.io", job, "--ignore-not-found", "--wait=false")

    def clean(self, study: str) -> list[str]:
        """Remove the RayJobs of a study that have ended, with their pods; returns their names."""
        ended = [job for job in self.jobs(study) if _status(job).get("jobDeploymentStatus") in ENDED]
        for job in ended:
            self.delete(job["metadata"]["name"])
        return [job["metadata"]["name"] for job in ended]

    def template(self) -> Manifest:
        """The RayJob that the installation brought.

        Raises:
            StudyError: If there is none.
        """
        found = self.read("rayjobs.ray.io", f"--selector={TEMPLATE}=true")["items"]
        if not found:
            raise StudyError(
                f"no RayJob with the label {TEMPLATE} in namespace {self.name!r}; "
                "install cellray there first (k8s/README.md)"
            )
        return found[0]

    def worker_groups(self) -> list[dict[str, str | float]]:
        """The worker groups that a study gets there."""
        return worker_groups(self.template()["spec"]["rayClusterSpec"])

    def submit(self, parcel: Parcel) -> str:
        """Start a study; returns the RayJob's name.

        Raises:
            StudyError: If cellray isn't installed in this namespace, or the cluster refuses.
        """
        made = self.create(rayjob(self.template(), parcel, f"{uuid.uuid4().hex[:5]}"))
        name = str(made["metadata"]["name"])
        # The job first, so that the study can belong to it and goes when it goes; the head's pod waits for it.
        owner = {"apiVersion": made["apiVersion"], "kind": "RayJob", "name": name, "uid": made["metadata"]["uid"]}
        labels = {STUDY_LABEL: label_of(parcel.study.name)}
        metadata = {"name": name, "labels": labels, "ownerReferences": [owner]}
        try:
            self.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": parcel.files})
        except StudyError:
            self.kubectl("delete", "rayjobs.ray.io", name, "--wait=false")  # it would wait for its study for ever
            raise
        return name

    def follow(self, job: str, say: Callable[[str], None]) -> Incident | None:
        """Show what a RayJob prints, and what its pods lack, until it ends or something doesn't pass.

        Returns:
            What it failed of; None if the study is done. Its own table says which trials failed.

        Raises:
            StudyError: If the RayJob was deleted, or the cluster doesn't answer for long.
        """
        shown, told, last_answer = "", set[str](), time.monotonic()
        with self._logs(job) as logs:
            while True:
                try:
                    things = self.read("rayjobs.ray.io,pods,events")["items"]
                    last_answer = time.monotonic()
                except StudyError:
                    if time.monotonic() - last_answer > RAYJOB_AWAY_S:
                        raise
                    time.sleep(POLL_S)
                    continue
                mine = [t for t in things if t["kind"] == "RayJob" and t["metadata"]["name"] == job]
                if not mine:
                    raise StudyError(
                        f"RayJob {job} was deleted; what the study has done is in its ledger, "
                        f"and the same command goes on"
                    )
                status = _status(mine[0])
                state = str(status.get("jobDeploymentStatus") or "New")
                if state != shown:
                    say(f"{job}: {state}")
                    shown = state
                if state in (*ENDED, "Running"):  # one that ended quickly has something to show, too
                    logs.show()
                if state in ENDED:
                    logs.finish()
                    return end_of(job, status)
                for incident in pod_incidents(*_pods_and_events(things, job, status)):
                    if not incident.trouble.passes:
                        return incident
                    if (key := f"{incident.who} {incident.trouble.name}") not in told:
                        say(str(incident))
                        told.add(key)
                time.sleep(POLL_S)

    def incidents(self, job: str) -> list[Incident]:
        """What the pods of a RayJob lack now."""
        things = self.read("rayjobs.ray.io,pods,events")["items"]
        status = next((_status(t) for t in things if t["kind"] == "RayJob" and t["metadata"]["name"] == job), {})
        found = pod_incidents(*_pods_and_events(things, job, status))
        return list({(incident.who, incident.trouble.name): incident for incident in found}.values())

    @contextmanager
    def _logs(self, job: str) -> Iterator[_Logs]:
        logs = _Logs([*self.words, "logs", "--follow", f"job/{job}"])
        try:
            yield logs
        finally:
            logs.stop()

    def fetch_report(self, study: str, folder: Path) -> int:
        """Bring a study's report here, through the pod of MLflow, which sees the storage; returns the number of files.

        Raises:
            StudyError: If that pod can't be reached, or the study has no report.
        """
        command = [*self.words, "exec", "deployment/mlflow", "--", "cellray", "fetch", study, "--to", "-"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise StudyError(f"the report can't be fetched: {said[0]}")
        return untar_report(io.BytesIO(done.stdout), folder)


def _status(thing: Manifest) -> Manifest:
    """An object's status, {} before it has one."""
    return thing.get("status") or {}


def _pods_and_events(things: list[Manifest], job: str, status: Manifest) -> tuple[list[Manifest], list[Manifest]]:
    """Of a namespace's objects, the pods of a RayJob (its cluster's and its submitter's), and events about it all."""
    cluster = status.get("rayClusterName")
    marks = {("job-name", job), ("ray.io/cluster", cluster)}
    pods = [t for t in things if t["kind"] == "Pod" and marks & set((t["metadata"].get("labels") or {}).items())]
    names = {job, cluster, *(pod["metadata"]["name"] for pod in pods)}
    return pods, [t for t in things if t["kind"] == "Event" and t["involvedObject"].get("name") in names]


class _Logs:
    """What a job's submitter prints, passed on by kubectl beside the questions for the job's state."""

    def __init__(self, command: list[str]) -> None:
        self._command, self._since = command, ""
        self._process: subprocess.Popen[bytes] | None = None

    def show(self) -> None:
        """See that it is shown: kubectl ends when the connection does."""
        if self._process is None or self._process.poll() is not None:
            more = [f"--since-time={self._since}"] if self._since else []
            with unbroken():  # else nobody has what was started
                self._process = subprocess.Popen([*self._command, *more], stderr=subprocess.DEVNULL)
        self._since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def finish(self) -> None:
        """Wait until the rest is shown."""
        if self._process is not None:
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.stop()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def rayjob(template: Manifest, parcel: Parcel, suffix: str) -> Manifest:
    """The RayJob of a study: the installation's own with another name, study and command.

    Args:
        template: As `kubectl get` prints it.
        parcel: The study.
        suffix: Ends the name, so that a study may be run again.

    Raises:
        StudyError: If the template has no volume for the study.
    """
    source = template["metadata"]
    spec = deepcopy(template["spec"])
    spec.pop("suspend", None)  # Kueue's, if it is there
    name = f"{dns_name(parcel.study.name)[: MAX_NAME - len(suffix) - 1].rstrip('-')}-{suffix}"
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volume = next((volume for volume in head.get("volumes", []) if volume["name"] == STUDY_VOLUME), None)
    if volume is None:
        raise StudyError(
            f"the RayJob {source['name']!r} of this installation has no volume {STUDY_VOLUME!r} for the study; "
            "see k8s/README.md"
        )
    volume["configMap"] = {"name": name}
    for container in head["containers"]:
        for variable in container.get("env", []):
            if variable["name"] == GROUPS_VARIABLE:
                variable.pop("valueFrom", None)
                variable["value"] = json.dumps(worker_groups(spec["rayClusterSpec"]))
    command = shlex.join([*shlex.split(spec["entrypoint"]), *parcel.words])
    spec["entrypoint"] = shlex.join(["sh", "-c", _persistent(command)])
    labels = {key: value for key, value in (source.get("labels") or {}).items() if key != TEMPLATE}
    annotations = {
        key: value
        for key, value in (source.get("annotations") or {}).items()
        if key != "kubectl.kubernetes.io/last-applied-configuration"
    }
    return {
        "apiVersion": template["apiVersion"],
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "labels": {**labels, STUDY_LABEL: label_of(parcel.study.name)},
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": spec,
    }


def _persistent(command: str) -> str:
    """A shell's words for a sweep that is tried again where it broke off, and not where that is no use.

    Exit code 3 says that it is done, though some trials failed: a success to Kubernetes. Code 2 (the study or its data
    are wrong) and a signal to stop end it at once.
    """
    pauses = " ".join(map(str, TRIES_PAUSES_S))
    return (
        f"for pause in {pauses} none; do {command}; code=$?; "
        f"case $code in 0|{FAILED_TRIALS}) exit 0;; 2|130|143) exit $code;; esac; "
        f"test $pause = none && exit $code; "
        f'echo "The sweep broke off (exit code $code) and goes on in $pause s."; sleep $pause; done'
    )


def worker_groups(cluster: Manifest) -> list[dict[str, str | float]]:
    """The worker groups of a RayCluster's spec, as `places.WorkerGroup` says them."""
    groups: list[dict[str, str | float]] = []
    for group in cluster.get("workerGroupSpecs", []):
        ray, resources = group["template"]["spec"]["containers"][0], group.get("resources") or {}
        limits = (ray.get("resources") or {}).get("limits") or {}
        gpus = sum(quantity(amount) for name, amount in limits.items() if name.endswith("/gpu"))
        given = group.get("rayStartParams") or {}
        groups.append(
            {
                "name": group["groupName"],
                "nodes": int(group.get("maxReplicas", group.get("replicas", 0))),
                "CPU": float(given.get("num-cpus", resources.get("CPU", quantity(limits.get("cpu", 0))))),
                "GPU": float(given.get("num-gpus", resources.get("GPU", gpus))),
            }
        )
    return groups


def quantity(text: object) -> float:
    """A number as Kubernetes writes it: `2`, `1500m`, `8Gi`."""
    found = re.fullmatch(r"([0-9.]+)(|m|[kMGTP]i?)", str(text))
    if found is None:
        raise StudyError(f"expected a quantity of Kubernetes such as 2, 1500m or 8Gi, got {text!r}")
    number, unit = float(found[1]), found[2]
    if unit == "m":
        return number / 1000
    power = " kMGTP".index(unit[:1] or " ")
    return number * (1024 if unit.endswith("i") else 1000) ** power


def dns_name(text: str) -> str:
    """A name as Kubernetes wants it: small letters, digits and dashes, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name if name[:1].isalpha() else f"study-{name}".rstrip("-")


def label_of(text: str) -> str:
    """A label's value for a study's name: at most 63 characters, letters or digits at both ends."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:63].strip("-_.")
