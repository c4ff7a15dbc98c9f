"""A Kubernetes API of one process for the real kubectl: it stores what it is given, and runs a RayJob's command here.

No scheduler, no images: a RayJob's entrypoint is run in a shell with the study's ConfigMap as files, and its status and
log are what KubeRay would show. `exec` runs its command here too.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

GROUPS = {
    "ray.io": {"rayjobs": "RayJob"},
    "batch": {"jobs": "Job"},
    "apps": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "networking.k8s.io": {"networkpolicies": "NetworkPolicy"},
    "storage.k8s.io": {"storageclasses": "StorageClass"},
    "authorization.k8s.io": {"selfsubjectaccessreviews": "SelfSubjectAccessReview"},
}
"""Kinds by their plural, of each group's version 1."""
CORE = {
    "configmaps": "ConfigMap",
    "pods": "Pod",
    "namespaces": "Namespace",
    "events": "Event",
    "nodes": "Node",
    "services": "Service",
    "endpoints": "Endpoints",
    "serviceaccounts": "ServiceAccount",
    "resourcequotas": "ResourceQuota",
    "limitranges": "LimitRange",
}
CLUSTER_WIDE = ("namespaces", "nodes", "storageclasses", "selfsubjectaccessreviews")
KINDS = {plural: kind for kinds in (CORE, *GROUPS.values()) for plural, kind in kinds.items()}


class TinyCluster:
    """The objects, and the processes of the RayJobs.

    Args:
        folder: For the studies that come as ConfigMaps.
        environment: Of the commands.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.objects: dict[str, dict[str, Any]] = {plural: {} for plural in KINDS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.lost: set[str] = set()
        self.refused: dict[str, str] = {}
        """Why admission takes no object of a kind."""
        self.forbidden: set[str] = set()
        """What the user may not do, as `create pods`."""
        self.config = folder / "kubeconfig"

    # What kubectl asks first.

    async def versions(self, _: web.Request) -> web.Response:
        return web.json_response({"kind": "APIVersions", "versions": ["v1"]})

    async def groups(self, _: web.Request) -> web.Response:
        found = [
            {
                "name": name,
                "versions": [{"groupVersion": f"{name}/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": f"{name}/v1", "version": "v1"},
            }
            for name in GROUPS
        ]
        return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": found})

    async def resources(self, request: web.Request) -> web.Response:
        group = request.match_info.get("group")
        found, name = (CORE, "v1") if group is None else (GROUPS[group], f"{group}/v1")
        listed = [
            {
                "name": plural,
                "singularName": kind.lower(),
                "namespaced": plural not in CLUSTER_WIDE,
                "kind": kind,
                "verbs": ["get", "list", "create", "delete", "patch"],
            }
            for plural, kind in found.items()
        ]
        return web.json_response({"kind": "APIResourceList", "groupVersion": name, "resources": listed})

    async def openapi(self, request: web.Request) -> web.Response:
        """That the server checks fields itself: kubectl then doesn't."""
        tops = {"api/v1": ("", CORE)} | {f"apis/{name}/v1": (name, kinds) for name, kinds in GROUPS.items()}
        top = request.match_info.get("top")
        if top is None:
            return web.json_response({"paths": {name: {"serverRelativeURL": f"/openapi/v3/{name}"} for name in tops}})
        checks = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
        paths = {
            f"/{top}/namespaces/{{namespace}}/{plural}/{{name}}": {
                "patch": {
                    "parameters": [checks, {**checks, "name": "dryRun"}],
                    "responses": {},
                    "x-kubernetes-group-version-kind": {"group": tops[top][0], "version": "v1", "kind": kind},
                }
            }
            for plural, kind in tops[top][1].items()
        }
        info = {"title": "tiny", "version": "1"}
        return web.json_response({"openapi": "3.0.0", "info": info, "paths": paths})

    # Objects.

    async def read(self, request: web.Request) -> web.Response:
        plural, name = request.match_info["plural"], request.match_info.get("name")
        stored = self.objects[plural]
        if name is not None:
            if name not in stored:
                return _refuse(404, "NotFound", f'{plural} "{name}" not found')
            return web.json_response(stored[name])
        wanted = dict(term.split("=") for term in request.query.get("labelSelector", "").split(",") if term)
        items = [o for o in stored.values() if wanted.items() <= (o["metadata"].get("labels") or {}).items()]
        top = request.match_info.get("group")
        version = f"{top}/{request.match_info['version']}" if top else "v1"
        return web.json_response(
            {"kind": f"{KINDS[plural]}List", "apiVersion": version, "metadata": {}, "items": items}
        )

    async def create(self, request: web.Request) -> web.Response:
        plural, thing = request.match_info["plural"], await request.json()
        if plural == "selfsubjectaccessreviews":
            asked = thing["spec"]["resourceAttributes"]
            what = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            return web.json_response(
                thing | {"status": {"allowed": f"{asked['verb']} {what}" not in self.forbidden}}, status=201
            )
        if thing["kind"] in self.refused:
            return _refuse(403, "Forbidden", self.refused[thing["kind"]])
        if "dryRun" in request.query:
            return web.json_response(thing, status=201)
        name = thing["metadata"]["name"]
        if name in self.objects[plural]:
            return _refuse(409, "AlreadyExists", f'{plural} "{name}" already exists')
        thing["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": request.match_info.get("namespace", "")}
        self.objects[plural][name] = thing
        if plural == "configmaps" and name in self.objects["rayjobs"]:
            task = asyncio.create_task(self._run(name, thing["data"]))
            self.tasks.add(task)
        if plural == "pods":
            self.tasks.add(asyncio.create_task(self._run_pod(thing)))
        return web.json_response(thing, status=201)

    async def patch(self, request: web.Request) -> web.Response:
        thing = json.loads(await request.read())
        if thing["kind"] in self.refused:
            return _refuse(403, "Forbidden", self.refused[thing["kind"]])
        assert "dryRun" in request.query
        return web.json_response(thing)

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "36", "gitVersion": "v1.36.2"})

    async def delete(self, request: web.Request) -> web.Response:
        plural, name = request.match_info["plural"], request.match_info["name"]
        if name not in self.objects[plural]:
            return _refuse(404, "NotFound", f'{plural} "{name}" not found')
        gone = self.objects[plural].pop(name)
        if plural == "rayjobs":
            self.objects["configmaps"].pop(name, None)
            self.objects["jobs"].pop(name, None)
            self.objects["pods"].pop(f"{name}-pod", None)
            self._kill(name)
        return web.json_response(gone)

    def lose_head(self, name: str) -> None:
        """What KubeRay says of a RayJob whose head is gone, five minutes later."""
        self.lost.add(name)
        self._kill(name)

    def _kill(self, name: str) -> None:
        if name in self.processes and self.processes[name].poll() is None:
            os.killpg(self.processes[name].pid, signal.SIGKILL)

    def close(self) -> None:
        """End everything that runs."""
        for task in self.tasks:
            task.cancel()
        for name, process in self.processes.items():
            self._kill(name)
            process.wait()

    async def log(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"].removesuffix("-pod")
        response = web.StreamResponse()
        await response.prepare(request)
        sent = len(self._log(name)) if "sinceTime" in request.query else 0
        while True:
            running = self.processes[name].poll() is None
            new = self._log(name)[sent:]
            await response.write(new)
            sent += len(new)
            if not running:
                return response
            await asyncio.sleep(0.1)

    async def execute(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=["v5.channel.k8s.io", "v4.channel.k8s.io"])
        await socket.prepare(request)
        done = await asyncio.to_thread(
            subprocess.run, request.query.getall("command"), capture_output=True, check=False,
            env=self.environment, cwd=self.folder,
        )  # fmt: skip
        for channel, data in ((1, done.stdout), (2, done.stderr)):
            for start in range(0, len(data), 30_000):
                await socket.send_bytes(bytes([channel]) + data[start : start + 30_000])
        status: dict[str, Any] = {"metadata": {}, "status": "Success"}
        if done.returncode:
            causes = [{"reason": "ExitCode", "message": str(done.returncode)}]
            status = {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
        await socket.send_bytes(b"\x03" + json.dumps(status).encode())
        await socket.close()
        return socket

    # What KubeRay does.

    async def _run(self, name: str, files: dict[str, str]) -> None:
        job = self.objects["rayjobs"][name]
        head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        volume = next(v["name"] for v in head["volumes"] if v.get("configMap", {}).get("name") == name)
        mounted = next(m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] == volume)
        place = self.folder / name
        place.mkdir()
        for file, text in files.items():
            (place / file).write_text(text)
        job["status"] = {"jobDeploymentStatus": "Initializing"}
        await asyncio.sleep(0.5)
        self._start(name, job["spec"]["entrypoint"].replace(f"{mounted}/", f"{place}/", 1))
        pod = {"metadata": {"name": f"{name}-pod", "namespace": "cellray", "labels": {"job-name": name}}}
        pod |= {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "submitter"}]}}
        pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        self.objects["pods"][f"{name}-pod"] = pod
        selector = {"matchLabels": {"job-name": name}}
        self.objects["jobs"][name] = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": "cellray"},
            "spec": {"selector": selector},
        }
        job["status"] = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
        code = await self._ended(name)
        state = ("Complete", "SUCCEEDED") if code == 0 else ("Failed", "FAILED")
        job["status"] = {"jobDeploymentStatus": state[0], "jobStatus": state[1]}
        if name in self.lost:
            job["status"] = {"jobDeploymentStatus": "Failed", "reason": "JobStatusCheckTimeoutExceeded"}
            job["status"]["message"] = "the job status couldn't be read for 5m0s"
        elif code:
            tail = self._log(name).decode()[-20_000:]
            words = (
                f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 chars):"
            )
            job["status"] |= {"reason": "AppFailed", "message": f"{words}\n{tail}"}

    async def _run_pod(self, pod: dict[str, Any]) -> None:
        (container,), name = pod["spec"]["containers"], pod["metadata"]["name"]
        self._start(name, shlex.join(container["command"]))
        pod["status"] = {"phase": "Failed" if await self._ended(name) else "Succeeded"}

    def _start(self, name: str, command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                f"exec {command}", shell=True, stdout=log, stderr=subprocess.STDOUT,
                env=self.environment, cwd=self.folder, start_new_session=True,
            )  # fmt: skip

    async def _ended(self, name: str) -> int:
        while (code := self.processes[name].poll()) is None:
            await asyncio.sleep(0.1)
        return code

    def _log(self, name: str) -> bytes:
        return (self.folder / f"{name}.log").read_bytes()


def _refuse(code: int, reason: str, message: str) -> web.Response:
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": code,
    }
    return web.json_response(status, status=code)


@contextmanager
def tiny_cluster(folder: Path, environment: dict[str, str]) -> Iterator[TinyCluster]:
    """A running `TinyCluster`, and the kubectl configuration `config` that names it as the context `tiny`."""
    cluster = TinyCluster(folder, environment)
    ready = threading.Event()
    address: list[str] = []
    ending: list[Callable[[], object]] = []

    async def serve() -> None:
        app = web.Application(client_max_size=2**24)
        spaced = "/namespaces/{namespace}"
        app.router.add_get("/version", cluster.version)
        app.router.add_get("/api", cluster.versions)
        app.router.add_get("/apis", cluster.groups)
        app.router.add_get("/openapi/v3", cluster.openapi)
        app.router.add_get("/openapi/v3/{top:.*}", cluster.openapi)
        app.router.add_get("/api/v1", cluster.resources)
        for top in ("/api/v1", "/apis/{group}/{version}"):
            if top != "/api/v1":
                app.router.add_get(top, cluster.resources)
            app.router.add_get(top + spaced + "/{plural}", cluster.read)
            app.router.add_post(top + spaced + "/{plural}", cluster.create)
            app.router.add_get(top + spaced + "/{plural}/{name}", cluster.read)
            app.router.add_get(top + "/{plural}", cluster.read)
            app.router.add_post(top + "/{plural}", cluster.create)
            app.router.add_patch(top + "/{plural}/{name}", cluster.patch)
            app.router.add_patch(top + spaced + "/{plural}/{name}", cluster.patch)
            app.router.add_delete(top + spaced + "/{plural}/{name}", cluster.delete)
        app.router.add_get("/api/v1" + spaced + "/pods/{name}/log", cluster.log)
        app.router.add_get("/api/v1" + spaced + "/pods/{name}/exec", cluster.execute)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        ending.append(lambda: loop.call_soon_threadsafe(ended.set))
        ready.set()
        await ended.wait()
        cluster.close()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    cluster.config.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "tiny", "cluster": {"server": address[0]}}],
                "users": [{"name": "me", "user": {}}],
                "contexts": [{"name": "tiny", "context": {"cluster": "tiny", "user": "me"}}],
            }
        )
    )
    try:
        yield cluster
    finally:
        ending[0]()
        thread.join(60)
        assert not thread.is_alive()
