"""The commands, judged by exit code, output and files; each of them at least once in a process of its own."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import zipfile
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from commands import run_apart, run_here
from mlflow import MlflowClient
from PIL import Image
from services import free_port

from cellray.cli import common
from cellray.ledger.lease import _pid_space
from cellray.tracking import default_store

STUDY = """
name: tiny
question: Does the command line work?
data:
  train:
    name: drawn
    synthetic: {n_trainval: 6, n_test: 3, width_px: 96, height_px: 96, scale: 0.4, seed: 1}
model: {base_features: 2}
training: {steps: 4, batch_size: 2, crop_px: 32, lr: 0.01, batch_norm_batches: 2}
configurations:
  - {label: Dice, loss: {name: dice}}
  - {label: BCE, loss: {name: bce}}
seeds: [0, 1]
resources: {max_concurrent: 1} # a second worker would start for a second of work
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study, one cache for all commands, and a dataset to predict on."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(STUDY)
    return folder


def cellray(place: Path, *words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `place`, in a process of its own; fail with its output unless it ends with `code`."""
    return ended(run_apart(*words, cwd=place, env={"CELLRAY_CACHE": str(place / "cache"), **env}), code)


def here(place: Path, *words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """The same in this process."""
    return ended(run_here(*words, cwd=place, env={"CELLRAY_CACHE": str(place / "cache"), **env}), code)


def ended(done: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == code, f"{done.args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def swept(place: Path) -> subprocess.CompletedProcess[str]:
    """The study's sweep, for the tests that look at what it left."""
    return cellray(place, "sweep", "tiny.yaml")


@pytest.mark.slow
class TestOneStudy:
    def test_a_sweep_ends_with_the_ranked_table_and_the_reports_path(self, place, swept):
        page = place / "studies" / "tiny" / "report" / "index.html"
        assert swept.stdout.strip().splitlines()[-2:] == [
            f"report: {page}",
            "next: cellray predict tiny YOUR_IMAGES --out counted",
        ]
        assert "rank" in swept.stdout
        assert "tiny: 4 trials planned, 0 in the ledger, 4 to do" in swept.stdout
        assert swept.stderr == ""
        assert page.read_text().startswith("<!doctype html>") or "<html" in page.read_text()[:200]

    def test_the_verdict_is_the_same_text_everywhere(self, place, swept):
        """At the end of the commands, first on the page, and as the description of the study's run in MLflow."""
        verdict = (place / "studies/tiny/report/verdict.txt").read_text().split("\n\n")
        assert (
            verdict[0].startswith("This is a demonstration") and "With 2 common seeds nothing is decided" in verdict[2]
        )
        whole = " ".join(" ".join(verdict).split())
        for told in (swept.stdout, here(place, "status", "tiny").stdout, here(place, "report", "tiny").stdout):
            assert whole in " ".join(told.split())
        assert json.loads(here(place, "status", "tiny", "--json").stdout)["verdict"] == verdict
        page = unescape((place / "studies/tiny/report/index.html").read_text())
        answer = page[page.index('<section id="answer"') : page.index('<section id="ranking"')]
        assert re.findall(r"<p>(.*)</p>", answer) == verdict
        client = MlflowClient(tracking_uri=default_store(str(place / "studies")))
        experiment = client.get_experiment_by_name("tiny")
        (run,) = client.search_runs([experiment.experiment_id], "tags.`cellray.kind` = 'study'")
        assert run.data.tags["mlflow.note.content"].split("\n\n") == verdict

    def test_the_same_sweep_again_trains_nothing(self, place, swept):
        records = sorted((place / "studies/tiny/trials").glob("*/trial.json"))
        before = [path.stat().st_mtime_ns for path in records]
        again = here(place, "sweep", "tiny.yaml")
        assert len(records) == 4
        assert [path.stat().st_mtime_ns for path in records] == before
        assert "4 in the ledger, 0 to do" in again.stdout
        assert again.stdout.splitlines()[1:] == swept.stdout.splitlines()[-len(again.stdout.splitlines()) + 1 :]

    def test_json_is_one_object_with_the_ranking(self, place, swept):
        answer = json.loads(here(place, "sweep", "tiny.yaml", "--json").stdout)
        assert answer["study"] == "tiny"
        assert sum(answer["outcomes"].values()) == 4
        assert {row["configuration"] for row in answer["table"]} == {"Dice", "BCE"}

    def test_train_gives_the_record_of_the_sweep(self, place, swept):
        alone = json.loads(
            cellray(
                place, "train", "tiny.yaml", "--config", "Dice", "--seed", "1", "--storage", "alone", "--json"
            ).stdout
        )
        stored = json.loads((place / f"studies/tiny/trials/{alone['key']}/trial.json").read_text())
        for name in ("label", "seed", "outcome", "operating_point", "metrics", "lr", "data"):
            assert alone[name] == stored[name], name
        assert "Provisional: 3 of 4 planned trials are missing" in here(
            place, "report", "tiny", "--storage", "alone"
        ).stdout  # fmt: skip

    def test_plan_says_what_is_done_and_what_is_left(self, place, swept):
        (place / "more.yaml").write_text(STUDY.replace("seeds: [0, 1]", "seeds: [0, 1, 2]"))
        answer = json.loads(here(place, "plan", "more.yaml", "--json").stdout)
        assert [(t["label"], t["seed"]) for t in answer["trials"] if not t["done"]] == [("Dice", 2), ("BCE", 2)]
        assert answer["n_todo"] == 2
        assert answer["total_s"] > 0
        assert answer["disk_mb"] > 0
        assert "6 trials, 4 done, 2 to do" in cellray(place, "plan", "more.yaml").stdout

    def test_status_and_report_need_no_data(self, place, swept, tmp_path):
        elsewhere = tmp_path / "studies"
        shutil.copytree(place / "studies" / "tiny", elsewhere / "tiny")
        shutil.rmtree(elsewhere / "tiny" / "report")
        again = cellray(place, "report", "tiny", "--storage", str(elsewhere), CELLRAY_CACHE=str(tmp_path / "none"))
        assert (elsewhere / "tiny/report/index.html").read_bytes() == (
            place / "studies/tiny/report/index.html"
        ).read_bytes()
        page, goes_on = f"{elsewhere}/tiny/report/index.html", "cellray predict tiny YOUR_IMAGES --out counted"
        assert again.stdout.endswith(f"report: {page}\nnext: {goes_on} --storage {elsewhere}\n")
        assert not (elsewhere / "tiny/report/ranking.tex").exists()
        here(place, "report", "tiny", "--storage", str(elsewhere), "--export")
        assert "BCE" in (elsewhere / "tiny/report/ranking.tex").read_text()
        status = cellray(place, "status", "tiny", "--storage", str(elsewhere))
        assert "4 trials planned" in status.stdout
        assert "no sweep is running" in status.stdout

    def test_compare_pairs_configurations_and_studies(self, place, swept):
        told = cellray(place, "compare", "Dice", "BCE", "--study", "tiny")
        assert "undecided" in told.stdout  # two seeds decide nothing
        assert "paired by seed and image" in told.stdout
        rows = json.loads(here(place, "compare", "tiny", "tiny", "--json").stdout)
        assert [row["configuration"] for row in rows] == ["Dice", "BCE"]
        assert {row["difference"] for row in rows} == {"+0.000"}
        wrong = here(place, "compare", "Dize", "BCE", "--study", "tiny", code=2)
        assert "did you mean 'Dice'" in wrong.stderr
        assert "no study 'Dice' in studies" in here(place, "compare", "Dice", "BCE", code=2).stderr

    def test_evaluate_scores_a_dataset_as_the_study_scored_its_own(self, place, swept):
        here(
            place, "data", "synth", "images", "--n-trainval", "1", "--n-test", "2", "--width-px", "96", "--height-px",
            "96", "--scale", "0.4",
        )  # fmt: skip
        told = cellray(
            place, "evaluate", "tiny", "images", "--config", "Dice", "--diameter-px", "15", "--out", "scores"
        )
        assert "on 3 images" in told.stdout
        rows = pd.read_csv(place / "scores/images.csv")
        scores = json.loads((place / "scores/scores.json").read_text())
        assert len(rows) == scores["n_images"] == 3
        assert rows.n_true.sum() == scores["n_true"]
        strata = pd.read_csv(place / "scores/strata.csv")
        assert strata[strata.stratum == "size"].n_true.sum() == scores["n_true"]
        assert strata[strata.stratum == "crowding"].n_images.sum() == 3
        curve = pd.read_csv(place / "scores/iou_curve.csv")
        assert list(curve.threshold) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
        assert curve.f1[3] == pytest.approx(scores["f1_iou"])
        assert (pd.read_csv(place / "scores/cells.csv").true_id > 0).sum() == scores["n_true"]
        by_itself = here(place, "evaluate", "tiny", "images").stdout
        assert "mean cell diameter" in by_itself and "measured on their true cells" in by_itself

    def test_predict_names_bad_files_at_the_end_and_loses_nothing(self, place, swept):
        """Two files of one stem, a stack, and three that can't be read: one by its header, two by their pixels."""
        folder = place / "mixed"
        folder.mkdir()
        pixels = np.full((64, 64, 3), 40, np.uint8)
        for name in ("a.png", "b.png", "cut.png", "a.tif"):
            Image.fromarray(pixels).save(folder / name)
        (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:90])
        Image.fromarray(pixels[..., 0].astype(np.float32)).save(folder / "float.tif")
        first, second = (Image.fromarray(pixels[..., 0] + k) for k in range(2))
        first.save(folder / "stack.tif", save_all=True, append_images=[second])
        told = here(place, "predict", "tiny", "mixed", "--config", "BCE", "--out", "mixed_out", code=3)
        table = pd.read_csv(place / "mixed_out" / "counts.csv")
        assert table["image"].tolist() == ["a.png", "a.tif", "b.png"]
        for kind, suffix in (("labels", "tif"), ("overlays", "png")):
            found = {f.name for f in (place / "mixed_out" / kind).iterdir()}
            assert found == {f"a.png.{suffix}", f"a.tif.{suffix}", f"b.{suffix}"}
        assert "1 of the files can't be read; they are named at the end" in told.stderr
        last = told.stderr.splitlines()[-3:]
        assert all(line.startswith("not counted: mixed/") for line in last)
        assert [line.split(":")[1] for line in last] == [" mixed/float.tif", " mixed/cut.png", " mixed/stack.tif"]
        assert "image of float32" in last[0] and "set data.plane" in last[2]

    def test_predict_writes_counts_labels_and_overlays(self, place, swept):
        folder = place / "new"
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for name, shape in (("a", (50, 70)), ("b", (61, 97))):
            Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        cellray(place, "predict", "tiny", "new", "--config", "BCE", "--seed", "0", "--out", "counted")
        counts, cells = (pd.read_csv(place / f"counted/{name}.csv") for name in ("counts", "cells"))
        assert list(counts.image) == ["a.png", "b.png"]
        for row in counts.itertuples():
            labels = tifffile.imread(place / "counted/labels" / f"{Path(row.image).stem}.tif")
            assert labels.max() == row.n_cells == (cells.image == row.image).sum()
            assert (place / "counted/overlays" / row.image).stat().st_size > 0
        assert labels.shape == (61, 97)

    def test_all_seeds_together_stand_beside_the_single_ones(self, place, swept):
        told = here(place, "evaluate", "tiny", "images", "--config", "BCE", "--ensemble", "--out", "together")
        assert "BCE, ensemble of seeds 0, 1 (f1_iou on validation" in told.stdout
        head = next(line for line in told.stdout.splitlines() if "ensemble" in line and "validation" not in line)
        assert head.split() == ["seed", "0", "seed", "1", "ensemble"]
        scores = json.loads((place / "together/scores.json").read_text())
        alone = here(place, "evaluate", "tiny", "images", "--config", "BCE", "--seed", "1", "--json")
        expected = {k: v for k, v in json.loads(alone.stdout).items() if k in scores}
        assert scores["single_runs"]["seed 1"] == expected
        assert (
            "leave out --seed"
            in here(place, "predict", "tiny", "images", "--out", "x", "--seed", "0", "--ensemble", code=2).stderr
        )

    def test_a_second_sweep_on_the_same_ledger_is_told_who_holds_it(self, place, swept):
        lease = place / "studies/tiny/lease.json"
        with subprocess.Popen(["sleep", "600"]) as living:
            holder = {"host": socket.gethostname(), "pids": _pid_space(), "pid": living.pid}
            lease.write_text(json.dumps({**holder, "id": "x", "seen": time.time()}))
            try:
                told = here(place, "sweep", "tiny.yaml", code=2)
            finally:
                living.kill()
                lease.unlink()
        assert f"held by another sweep (process {living.pid} on {socket.gethostname()}" in " ".join(told.stderr.split())

    def test_the_store_is_repaired_from_the_ledger(self, place, swept):
        told = cellray(place, "track", "sync", "tiny", "--tracking-uri", f"sqlite:///{place}/again.db")
        assert "4 records, 4 of them new" in told.stdout

    def test_the_best_model_gets_a_version(self, place, swept):
        first, again = (run(place, "register", "tiny") for run in (cellray, here))
        assert "registered as tiny, version 1" in first.stdout and "Warning" not in first.stderr
        assert "has its version already: tiny, version 1" in again.stdout
        other = here(place, "register", "tiny", "--json", "--ensemble", "--config", "BCE")
        assert json.loads(other.stdout)["seeds"] == [0, 1]


@pytest.mark.slow
def test_what_needs_no_study_runs_by_itself(place):
    assert "focal_tversky" in cellray(place, "losses", "list").stdout
    assert "Focal Tversky" in cellray(place, "audit", "published").stdout


class TestBadInput:
    """One clear error, exit code 2, no traceback, nothing started."""

    def told(self, place: Path, *words: str, **env: str) -> str:
        done = here(place, *words, code=2, **env)
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("Error: ")
        return done.stderr

    @pytest.mark.parametrize("run", [pytest.param(cellray, marks=pytest.mark.slow), here])
    def test_no_such_study_file(self, place, run):
        told = run(place, "sweep", "tiny.yml", code=2).stderr
        assert told == "Error: tiny.yml: no such study file (did you mean 'tiny.yaml'?)\n"

    def test_an_unknown_word_is_named_with_line_and_nearest(self, place):
        (place / "typo.yaml").write_text(STUDY.replace("name: dice", "name: dise"))
        told = self.told(place, "sweep", "typo.yaml")
        assert "typo.yaml:11: configurations[0].loss.name" in told
        assert "did you mean 'dice'?" in told

    def test_an_unknown_configuration_or_seed(self, place):
        assert "did you mean 'Dice'?" in self.told(place, "sweep", "tiny.yaml", "--only", "dice")
        assert "seed 9 is not in the study (it has 0, 1)" in self.told(place, "sweep", "tiny.yaml", "--seeds", "9")

    def test_a_storage_that_cannot_be_written(self, place):
        (place / "file").write_text("")
        assert "/file' is not writable" in self.told(place, "sweep", "tiny.yaml", "--storage", "file")

    def test_an_mlflow_store_that_does_not_answer(self, place):
        port = free_port()
        told = self.told(place, "sweep", "tiny.yaml", "--tracking-uri", f"http://user:secret@127.0.0.1:{port}")
        assert f"127.0.0.1:{port}" in told
        assert "secret" not in told

    @pytest.mark.slow
    def test_a_gpu_that_is_absent(self, place):
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        (place / "gpu.yaml").write_text(STUDY.replace("max_concurrent: 1", "gpus: 1"))
        assert "GPU" in self.told(place, "sweep", "gpu.yaml", "--storage", "gpu")
        assert not list((place / "gpu").rglob("trial.json"))

    def test_a_crop_larger_than_every_image(self, place):
        (place / "crop.yaml").write_text(STUDY.replace("crop_px: 32", "crop_px: 512"))
        told = self.told(place, "sweep", "crop.yaml", "--storage", "crop")
        assert "512" in told
        assert "96" in told

    def test_a_folder_that_is_no_dataset(self, place):
        (place / "empty").mkdir(exist_ok=True)
        done = here(place, "data", "check", "empty", code=2)
        assert "not usable" in done.stdout

    def test_a_study_file_that_can_not_be_written_is_named_before_images_are_looked_at(self, place):
        assert (
            self.told(place, "init", "empty", "--out", "no/x.yaml") == "Error: no/x.yaml: No such file or directory\n"
        )

    def test_a_study_that_was_never_swept(self, place):
        assert "no study 'never' in studies" in self.told(place, "status", "never")


@pytest.mark.slow
def test_the_reference_layout_is_trained_and_judged_on_its_real_images(place, shared, tmp_path):
    """Four real 1600x1200 images in the folders of FNC v2: the study file of the ablation, shortened."""
    with zipfile.ZipFile(shared / "data/fnc_real_samples.zip") as pack:
        pack.extractall(tmp_path / "pack")
    manifest = pd.read_csv(tmp_path / "pack/manifest.csv")
    for row in manifest[manifest.collection == "yellow"].itertuples():
        for kind, folder in (("images", "images"), ("masks", "ground_truths/masks")):
            target = tmp_path / "FNC/yellow" / row.v1_split / folder / row.file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "pack/yellow" / kind / row.file, target)
    ablation = (Path(__file__).parents[1] / "search_spaces/ablation.yaml").read_text()
    short = ablation
    for old, new in (
        ("epochs: 200", "epochs: 40\n  validate_every: 20"),
        ("batch_size: 32", "batch_size: 2"),
        ("crop_px: 512", "crop_px: 256"),
        ("lr: tune", "lr: 0.01"),
        ("base_features: 16", "base_features: 2"),
        ("rank_by: f1_iou", "rank_by: f1_iou\n  operating_point: {threshold: 0.5}"),  # its search has tests of its own
        ("cpus: 2, gpus: auto", "cpus: 1, gpus: 0"),  # two threads would fight with the other tests for the processors
    ):
        assert old in short, old
        short = short.replace(old, new)
    (place / "fnc.yaml").write_text(short)
    env = {"FNC_ROOT": str(tmp_path / "FNC")}
    told = cellray(place, "train", "fnc.yaml", "--config", "Dice", "--seed", "0", "--storage", "fnc", "--json", **env)
    record = json.loads(told.stdout)
    assert record["outcome"] == "finished"
    assert record["epochs"] == 40
    assert record["data"] | {"n_train": 1, "n_val": 1, "n_test": 2} == record["data"]
    assert record["metrics"]["own"]["test"]["n_true"] == 35  # counted by the pack's manifest: 35 and 0
    again = here(
        place, "evaluate", "ablation", str(tmp_path / "FNC/yellow"), "--config", "Dice", "--diameter-px", "40",
        "--storage", "fnc", "--json", **env,
    )  # fmt: skip
    scores = json.loads(again.stdout)
    assert (scores["n_images"], scores["n_true"]) == (4, 45)  # as the pack's README counts them


@pytest.mark.slow
def test_data_check_and_preview_of_a_usable_dataset(place):
    cellray(place, "data", "synth", "set", "--n-trainval", "4", "--n-test", "2", "--width-px", "128", "--height-px",
            "96", "--scale", "0.4")  # fmt: skip
    checked = json.loads(cellray(place, "data", "check", "set", "--json").stdout)[0]
    assert checked["is_usable"]
    assert checked["n_images"] == 6
    assert checked["splits"] == {"trainval": 4, "test": 2}
    cellray(place, "data", "preview", "set", "--out", "sheet.png")
    assert np.asarray(Image.open(place / "sheet.png")).std() > 0


@pytest.mark.slow
def test_schema_describes_the_shipped_studies(place):
    schema = json.loads(cellray(place, "schema").stdout)
    assert {"data", "training", "configurations", "seeds"} <= set(schema["properties"])


OWN_LOSS = """
import torch

def between_cells(logits, target, two_nearest, *, sigma: float = 4.0):
    cost = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return ((1 + torch.exp(-two_nearest / sigma)) * cost).mean()
"""


@pytest.mark.slow
class TestLossesInAStudy:
    def test_a_loss_of_ones_own_is_trained_by_ray_with_its_map_and_other_trials_stay_planned(self, place):
        # Not in the current folder: workers have to be told where it is.
        (place / "lab").mkdir()
        (place / "lab" / "my_losses.py").write_text(OWN_LOSS)
        text = STUDY.replace("name: tiny", "name: own").replace("{name: dice}", "{name: 'my_losses:between_cells'}")
        (place / "lab" / "own.yaml").write_text(text)
        refused = here(place, "sweep", "lab/own.yaml", code=2)
        assert "configurations[0].loss.name: 'my_losses:between_cells' is code outside cellray; --allow-code" in (
            refused.stderr
        )
        assert not (place / "studies" / "own").exists()
        only = ("--only", "Dice", "--seeds", "1", "--max-concurrent", "1")
        swept = cellray(place, "sweep", "lab/own.yaml", "--allow-code", *only, "--json")
        assert json.loads(swept.stdout)["outcomes"] == {"finished": 1, "missing": 3}
        (record,) = [json.loads(p.read_text()) for p in (place / "studies/own/trials").glob("*/trial.json")]
        assert (record["label"], record["seed"]) == ("Dice", 1)
        loss = record["settings"]["loss"]
        assert (loss["name"], loss["settings"], len(loss["code"])) == ("my_losses:between_cells", {"sigma": 4.0}, 16)
        again = here(place, "report", "lab/own.yaml")  # needs no code
        assert "Provisional: 3 of 4 planned trials are missing" in again.stdout
        assert "between_cells" in (place / "studies/own/report/index.html").read_text()

    def test_an_unsound_loss_stops_the_sweep_before_anything_is_made(self, place):
        text = STUDY.replace("name: tiny", "name: faulty").replace("{name: dice}", "{name: released_bce}")
        (place / "faulty.yaml").write_text(text)
        refused = here(place, "sweep", "faulty.yaml", code=2)
        assert "`allow: [double_activation, floor]` in it would run it all the same" in refused.stderr
        assert "'Dice': loss check double_activation: " in refused.stderr
        assert not (place / "studies" / "faulty").exists()

    def test_the_reference_protocol_runs_and_says_what_it_is(self, place):
        text = STUDY.replace("name: tiny", "name: quirky\nprotocol: fluocells-2023").replace(
            "{name: dice}", "{name: focal_tversky@code}"
        )
        (place / "quirky.yaml").write_text(text)
        for label in ("Dice", "BCE"):
            told = here(place, "train", "quirky.yaml", "--config", label, "--seed", "0")
            assert "quirk double_activation of Dice; BCE: " in told.stderr
        here(place, "report", "quirky.yaml")
        page = (place / "studies/quirky/report/index.html").read_text()
        assert "Quirk flattened_tversky of every configuration" in page
        assert "Failed and collapsed trials are left out of means and ranks" in page
        record = json.loads(next((place / "studies/quirky/trials").glob("*/trial.json")).read_text())
        assert (record["protocol"], len(record["quirks"]), record["lr"]) == ("fluocells-2023", 7, 0.001)
        assert record["metrics"]["own"] == record["metrics"]["shared"]
        note = "Note: quirk double_activation of Dice; BCE: "  # as often as anything is run
        assert note not in here(place, "sweep", "quirky.yaml", "--seeds", "0").stderr
        assert note in here(place, "sweep", "quirky.yaml", "--only", "Dice").stderr
        refused = here(place, "audit", "quirks", "quirky", code=2)
        assert "runs with double_activation" in refused.stderr


def test_the_next_command_is_named_as_the_shell_finds_it(tmp_path, monkeypatch):
    def script(folder: str) -> str:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cellray").write_text("#!/bin/sh\n")
        (tmp_path / folder / "cellray").chmod(0o755)
        return str(tmp_path / folder / "cellray")

    def named(called: str) -> str:
        monkeypatch.setattr("sys.argv", [called])
        return common._program()

    ours, others = script("ours"), script("others")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert named(ours) == ours  # as after `make demo`: no environment is active
    assert named("python/cellray/__main__.py") == "cellray"
    monkeypatch.setenv("PATH", str(tmp_path / "others"))
    assert (named(ours), named(others)) == (ours, "cellray")
