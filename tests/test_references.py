"""Predictions made elsewhere: found by name, judged as a study's own are, shown beside it and never ranked."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_data import key_of, plan_for, record, results_of, scores
from scipy import stats
from tifffile import imwrite
from tiny_study import draw_images, tiny_study, train_all

from cellray.data import Dataset
from cellray.data.predicted import read_predictions
from cellray.errors import DataError, StudyError
from cellray.ledger import Ledger
from cellray.prediction import TrainedModel
from cellray.record import Reference
from cellray.report import build_report, facts_of, format_table, load_tables, make_tables
from cellray.report.inference import infer
from cellray.report.page.ranking_tables import ranked_table
from cellray.report.references import add_references
from cellray.results import Sample
from cellray.statistics import difference_from
from cellray.study import load_study
from cellray.trial import judge_references, read_references

pytestmark = pytest.mark.usefixtures("own_cache")

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Three trained seeds, the first one's cells as a folder of labels, the true masks as another, both judged."""
    folder = tmp_path_factory.mktemp("judged")
    images = draw_images(folder / "disks", n_trainval=8, n_test=6)
    own, true = folder / "own", images / "test" / "ground_truths" / "masks"
    study = tiny_study(
        images,
        seeds=list(SEEDS),
        model={"base_features": 4},
        training={"steps": 25, "batch_size": 6},
        configurations=[{"label": "Dice", "loss": {"name": "dice"}}],
        references=[{"label": "seed 0", "path": str(own)}, {"label": "an expert", "path": str(true)}],
    )
    ledger = Ledger(str(folder / "storage"), study.name)
    sets, records, results = train_all(study, ledger)
    model = TrainedModel.load(ledger, seed=0)
    own.mkdir()
    for i in sets.split(study.trials()[0]).test:
        labels = model.find_cells(sets.train.image(i)).labels
        imwrite(own / f"{sets.train.names[i]}_cp_masks.tif", labels.astype(np.uint16))
        shutil.copy(images / "test" / "images" / f"{sets.train.names[i]}.png", own)
    judge_references(study, sets, ledger)
    return SimpleNamespace(study=study, sets=sets, ledger=ledger, records=records, results=results)


@pytest.mark.slow
def test_the_same_cells_have_the_same_scores_wherever_they_were_found(judged):
    first, expert = judged.ledger.references()
    of_trial = judged.records[0].scores("test")
    assert of_trial["n_pred"] > 3
    assert first.metrics == {key: pytest.approx(of_trial[key], nan_ok=True) for key in first.metrics}
    assert set(of_trial) - set(first.metrics) <= {"brier", "ece"}
    assert (expert.metrics["f1_iou"], expert.metrics["mae"], expert.metrics["dice"]) == (1.0, 0.0, 1.0)
    before = {file.path: file.changed for file in judged.ledger.files("references")}
    judge_references(judged.study, judged.sets, judged.ledger)
    assert {file.path: file.changed for file in judged.ledger.files("references")} == before  # known already


@pytest.mark.slow
def test_references_stand_in_tables_and_exports_without_seeds_or_rank(judged):
    tables = load_tables(judged.results)
    table = format_table(tables, metric="f1_iou", extra=["dice"])
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["configuration"] for row in rows] == ["Dice", "seed 0 (reference)", "an expert (reference)"]
    assert [row["rank"] for row in rows] == ["1", "–", "–"]
    assert (rows[2]["F1 (IoU)"], rows[2]["95 % interval"], rows[2]["finished"]) == ("1.000", "[1.000, 1.000]", "–")
    assert rows[1]["Dice"] == f"{judged.records[0].score('dice'):.3f}"
    assert any("no seeds and no rank" in note for note in table.notes)
    assert len(format_table(tables, metric="f1_iou", set_name="val").rows) == 1
    assert [
        cell.text for row in ranked_table(tables, "f1_iou", "test").rows for cell in row if cell.kind == "head"
    ] == [row["configuration"] for row in rows]
    assert set(tables.ranking.label) == {"Dice"} == set(tables.inference.pairs.a) | {"Dice"}

    build_report(judged.results, facts_of(judged.study))
    exported = pd.read_csv(Path(judged.ledger.uri) / "report" / "references.csv")
    assert exported[exported.metric == "f1_iou"].label.tolist() == ["seed 0", "an expert"]
    assert "an expert (reference)" in judged.ledger.read("report/index.html").decode()


@pytest.mark.slow
def test_the_verdict_compares_with_each_reference_in_a_sentence(judged):
    """The interval, by Student's formulas from image-wise differences over three seeds."""
    samples = [judged.results.samples[record.key]["test", "own"].values["f1_iou"] for record in judged.records]
    (_, own), (_, expert) = judged.results.references
    build_report(judged.results, facts_of(judged.study))
    verdict = judged.ledger.read("report/verdict.txt").decode().split("\n\n")
    for name, other in (("seed 0", own), ("an expert", expert)):
        differences = np.array(samples) - other.values["f1_iou"]
        mean, low, high = differences.mean(), *by_hand(differences)
        said = next(sentence for sentence in verdict if sentence.startswith(f"{name}'s predictions score F1 (IoU)"))
        assert f"{other.values['f1_iou'].mean():.3f} on the test set; Dice is " in said
        turned = (low, high) if mean >= 0 else (-high, -low)
        ends = ", ".join(f"{max(min(end, 1), -1):.3f}".replace("-", "−") for end in turned)
        assert f" by {abs(mean):.3f} [{ends}], with new trainings and on new images (95 % confidence)" in said
        assert ("so which is better isn't settled" in said) == (low <= 0 <= high)


def by_hand(differences: np.ndarray) -> tuple[float, float]:
    """The ends of the interval over new seeds and new images: two-way analysis of variance, MOVER."""
    s, n = differences.shape
    mean = differences.mean()
    ms_seed = n * ((differences.mean(1) - mean) ** 2).sum() / (s - 1)
    ms_image = s * ((differences.mean(0) - mean) ** 2).sum() / (n - 1)
    left = differences - differences.mean(1)[:, None] - differences.mean(0) + mean
    rest = (left**2).sum() / ((s - 1) * (n - 1))
    of_seeds = stats.t.ppf(0.975, s - 1) ** 2 * ms_seed / (s * n)
    of_images = stats.t.ppf(0.975, n - 1) ** 2 * max(ms_image - rest, 0) / (s * n)
    half = math.sqrt(of_seeds + of_images)
    return mean - half, mean + half


def test_one_seed_is_students_paired_interval_over_images():
    values, fixed = np.array([[0.9, 0.7, 0.8, 0.4]]), np.array([0.6, 0.7, 0.5, 0.4])
    found = difference_from(values, fixed, n_chosen_from=1)
    low, high = stats.ttest_rel(values[0], fixed).confidence_interval(0.95)
    assert (found.difference, found.low, found.high) == pytest.approx((0.15, low, high))


@pytest.mark.parametrize(("seed_sd", "image_sd", "rest_sd"), [(0.03, 0.0, 0.02), (0.01, 0.05, 0.05), (0.0, 0.08, 0.02)])
def test_the_interval_holds_though_the_best_of_six_is_compared(seed_sd, image_sd, rest_sd):
    """Six equal configurations of five seeds, as good as the reference: the one that comes out first is compared."""
    rng, missed, n_studies = np.random.default_rng(3), 0, 400
    for _ in range(n_studies):
        values = rng.normal(0, seed_sd, (6, 5, 1)) + rng.normal(0, rest_sd, (6, 5, 20))
        values += rng.normal(0, image_sd, (6, 1, 20))
        fixed = rng.normal(0, image_sd, 20) + rng.normal(0, rest_sd, 20)
        first = values[values.mean((1, 2)).argmax()]
        found = difference_from(first, fixed, n_chosen_from=6)
        missed += not found.low <= 0 <= found.high
    assert missed / n_studies <= 0.05


def test_of_an_error_less_is_better_and_a_signed_one_counts_by_its_size():
    """Three seeds that miscount by 2, 3 and 1 cells in the mean; the reference by 5, and 20 % too low."""
    plan, units = plan_for(["A"], seeds=SEEDS, rank_by="mae"), ("image a", "image b")
    errors = {0: 2.0, 1: 3.0, 2: 1.0}
    samples = {
        key_of("A", seed): {("test", "own"): Sample(units, {"mae": np.array([error - 1, error + 1])}, {})}
        for seed, error in errors.items()
    }
    records = [record("A", seed, {"test": scores(0.5, error=error)}) for seed, error in errors.items()]
    results = results_of(records, plan, samples=samples)
    given = {"mae": np.array([4.0, 6.0]), "mpe": np.array([-30.0, -10.0])}
    reference = Reference(label="R", key="r", metrics={"mae": 5.0, "mpe": -20.0})
    results.references = [(reference, Sample(units, given, {}))]
    found = add_references(infer(make_tables(results), results), results).references
    assert found.of("test", "mpe")["value"].tolist() == [20.0]
    assert found.of("test", "mae")["value"].tolist() == [5.0]
    low, high = stats.ttest_1samp([4.0, 6.0], 0).confidence_interval(0.95)
    assert found.of("test", "mae")[["low", "high"]].to_numpy().tolist() == [pytest.approx([max(low, 0), high])]
    (row,) = found.against.itertuples()
    # the same on both images, so that images add nothing: 3, 2 and 4 better, Student's interval over seeds
    low, high = stats.ttest_1samp([3.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert (row.difference, row.low, row.high) == pytest.approx((3.0, low, high))


def drawn(folder: Path, names: list[str], labels: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(labels).save(folder / name)
    return folder


class TestFiles:
    """Which file is of which image."""

    data = SimpleNamespace(names=["a", "part/b"], shapes=[(4, 6), (4, 6)])
    cell = np.array([[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 2, 2], [0, 1, 1, 0, 2, 2], [0, 0, 0, 0, 0, 0]], np.uint8)

    def read(self, path: Path) -> list[np.ndarray]:
        data: Dataset = self.data  # type: ignore[assignment]
        return read_predictions(str(path), data, [0, 1])

    @pytest.mark.parametrize(
        "names",
        [
            ["a.png", "b.png", "further.png"],
            ["A.png", "a.txt.png", "b.tif"],
            ["a_cp_masks.png", "b_cp_masks.png", "a.png", "b.png"],
            ["a_label.tif", "b_labels.tif"],
            ["seg of a.png", "seg of b.png"],
        ],
    )
    def test_names_and_endings(self, names, tmp_path):
        found = self.read(drawn(tmp_path / "given", names, self.cell))
        assert [labels.tolist() for labels in found] == [self.cell.tolist()] * 2

    def test_what_predict_writes_can_be_given_whole(self, tmp_path):
        drawn(tmp_path / "given" / "labels", ["a.png", "b.png"], self.cell)
        drawn(tmp_path / "given" / "overlays", ["a.png", "b.png"], self.cell)
        assert len(self.read(tmp_path / "given")) == 2

    def test_masks_of_one_value_are_cut_into_their_regions(self, tmp_path):
        found = self.read(drawn(tmp_path / "given", ["a.png", "b.png"], (self.cell > 0).astype(np.uint8)))
        assert [labels.max() for labels in found] == [2, 2]

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (["a.png"], "no label image for the test image 'part/b'"),
            (["a.png", "a.tif", "b.png"], "a.png and a.tif are both of the test image 'a'"),
            (["notes.txt"], "no label images in it"),
        ],
    )
    def test_what_lacks_or_is_there_twice_is_named(self, names, words, tmp_path):
        drawn(tmp_path / "given", [name for name in names if "." in name and name != "notes.txt"], self.cell)
        (tmp_path / "given" / "notes.txt").write_text("x")
        with pytest.raises(DataError, match=words):
            self.read(tmp_path / "given")

    def test_another_size_is_named(self, tmp_path):
        with pytest.raises(DataError, match="labels of 6x3 pixels, expected 6x4 like the image 'a'"):
            self.read(drawn(tmp_path / "given", ["a.png", "b.png"], self.cell[:3]))


@pytest.mark.slow
def test_a_study_whose_reference_lacks_an_image_is_refused_with_its_key(judged):
    other = judged.study.model_copy(
        update={"references": (judged.study.references[0].model_copy(update={"path": judged.ledger.uri}),)}
    )
    with pytest.raises(DataError, match=r"references\[0\] 'seed 0': .*no label images in it"):
        read_references(other, judged.sets)


def test_the_study_file_names_them_relative_to_itself(tmp_path, images):
    study = tiny_study(images)
    body = json.loads(study.model_dump_json())
    body["references"] = [{"label": "Cellpose", "path": "cellpose"}]
    (tmp_path / "study.yaml").write_text(json.dumps(body))
    loaded = load_study(tmp_path / "study.yaml")
    assert loaded.references[0].path == str(tmp_path / "cellpose")
    keys = [trial.key("f" * 16) for trial in study.trials()]
    assert [trial.key("f" * 16) for trial in loaded.trials()] == keys
    body["references"] = [{"label": "Dice", "path": "a"}, {"label": "B", "path": "b"}, {"label": "B", "path": "c"}]
    (tmp_path / "study.yaml").write_text(json.dumps(body))
    with pytest.raises(StudyError, match="something else is labelled 'Dice'") as refused:
        load_study(tmp_path / "study.yaml")
    assert "references[2].label: something else is labelled 'B'" in str(refused.value)
