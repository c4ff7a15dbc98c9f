"""What can become of a study on Kubernetes: what passes, what doesn't, and the one line that matters.

Everything is judged from what the API says: the RayJob's status, its pods and their events. `TROUBLES` is the whole
list; `k8s/README.md` shows it, with what `cellray submit` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
"""An object of Kubernetes, as its JSON says it."""

ENDED = ("Complete", "Failed", "ValidationFailed")
"""States of a RayJob's deployment after which nothing more happens."""


@dataclass(frozen=True)
class Trouble:
    """One kind of trouble.

    Attributes:
        name: For the reader.
        sign: A regular expression for ``reason: message`` of a pod, an event or a RayJob that ended.
        passes: Whether it goes away by itself or by a new start, which goes on from the ledger.
        do: What the user can do; '' for nothing.
    """

    name: str
    sign: str
    passes: bool
    do: str = ""


IMAGE_SIGN = r"(ErrImagePull|ImagePullBackOff|InvalidImageName|ErrImageNeverPull|Failed).*image"

TROUBLES = (
    Trouble(
        "no such image",
        r"InvalidImageName|ErrImageNeverPull|[Ii]mage.*(not found|manifest unknown|does not exist|invalid reference)",
        passes=False,
        do="correct `images` in the overlay, or push the image",
    ),
    Trouble("the image can't be pulled yet", IMAGE_SIGN, passes=True, do="look after the registry, if it stays"),
    Trouble("a quota is full", r"exceeded quota", passes=True, do="wait for others, or raise base/limits.yaml"),
    Trouble(
        "admission refuses a pod",
        r"Failed(To)?Create\w*: .*(violates PodSecurity|forbidden|admission webhook|denied the request)",
        passes=False,
        do="cellray cluster check names what is refused",
    ),
    Trouble(
        "a Secret or ConfigMap is missing",
        r"CreateContainerConfigError",
        passes=False,
        do="sh k8s/secrets.sh | kubectl create -f -",
    ),
    Trouble("no node has room", r"FailedScheduling", passes=True, do="wait for a node, or enlarge the node pool"),
    Trouble("out of memory", r"OOMKilled", passes=True, do="larger limits.memory, if it comes again"),
    Trouble("a pod was evicted", r"Evicted|Preempt\w+|NodeLost|TaintManagerEviction", passes=True),
    Trouble(
        "the study or its data are wrong",
        r"exit code 2\b",
        passes=False,
        do="correct it; the same command goes on from the ledger",
    ),
    Trouble(
        "the study took as long as it may in all", r"DeadlineExceeded", passes=False, do="the same command goes on"
    ),
    Trouble("the RayJob is no good", r"ValidationFailed", passes=False),
    Trouble("the study was stopped", r"STOPPED|was stopped", passes=False, do="the same command goes on"),
    Trouble("the sweep broke off again and again", r"exit code \d+|AppFailed", passes=False),
    Trouble(
        "the head was lost",
        r"JobStatusCheckTimeoutExceeded|JobDeploymentStatusTransitionGracePeriodExceeded|SubmissionFailed|"
        r"head pod|[Ff]ailed to (get|connect)",
        passes=True,
    ),
)
"""The first that fits counts."""


@dataclass(frozen=True)
class Incident:
    """A trouble of one pod or RayJob."""

    trouble: Trouble
    who: str
    said: str
    """What Kubernetes says, in a line."""

    def __str__(self) -> str:
        advice = f" ({self.trouble.do})" if self.trouble.do else ""
        return f"{self.who}: {self.trouble.name}{advice}: {self.said}"


def trouble_of(text: str) -> Trouble | None:
    """The trouble that ``reason: message`` tells of."""
    return next((trouble for trouble in TROUBLES if re.search(trouble.sign, text, re.DOTALL)), None)


def pod_incidents(pods: Iterable[Manifest], events: Iterable[Manifest]) -> Iterator[Incident]:
    """What is wrong with the pods of a RayJob now, by their own states and by the warnings about them.

    Warnings about a pod that runs are of the past.
    """
    run = set()
    for pod in pods:
        who, status = pod["metadata"]["name"], pod.get("status") or {}
        if status.get("phase") in ("Running", "Succeeded"):
            run.add(who)
        if status.get("reason"):
            yield from _found(who, status["reason"], status.get("message", ""))
        for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
            for state in (container.get("state") or {}, container.get("lastState") or {}):
                for told in (state.get("waiting"), state.get("terminated")):
                    if told and told.get("reason") not in (None, "Completed", "Error", "ContainerCreating"):
                        yield from _found(who, told["reason"], told.get("message", ""))
    for event in events:
        if event.get("type") == "Warning" and event["involvedObject"]["name"] not in run:
            yield from _found(event["involvedObject"]["name"], event.get("reason", ""), event.get("message", ""))


def _found(who: str, reason: str, message: str) -> Iterator[Incident]:
    said = " ".join(f"{reason}: {message}".split())
    trouble = trouble_of(said)
    if trouble is not None:
        yield Incident(trouble, who, said[:300])


def end_of(job: str, status: Manifest) -> Incident | None:
    """What a RayJob that ended failed of; None if it succeeded."""
    if status.get("jobStatus") == "SUCCEEDED":
        return None
    message = str(status.get("message") or "")
    text = f"{status.get('jobDeploymentStatus')} {status.get('jobStatus')} {status.get('reason')}: {message}"
    trouble = trouble_of(text) or Trouble("it failed", "", passes=False)
    return Incident(trouble, job, line_that_matters(message) or str(status.get("reason") or "no reason given"))


def line_that_matters(text: str) -> str:
    """Of what a job said at its end, the error; else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(Error|\w*Error|\w*Exception):", line)]
    return (errors or lines or [""])[-1][:500]
