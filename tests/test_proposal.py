"""From folders as tools leave them to a study: what is found, what is chosen, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from pictures import disks
from PIL import Image
from tifffile import imwrite

from cellray.data import open_dataset
from cellray.data.grouping import guess_groups
from cellray.errors import DataError, StudyError
from cellray.proposal import Proposal, examine, seconds_of, within_budget
from cellray.study import Study

N, SIDE = 12, 96


def draw(k: int) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 (H, W) with bright disks, and its labels."""
    rng = np.random.default_rng(k)
    labels = disks(rng, SIDE, SIDE, n=int(rng.integers(3, 7)), radius=7.0)
    image = rng.integers(10, 40, labels.shape) + 180 * (labels > 0)
    return image.astype(np.uint8), labels.astype(np.uint16)


def save(file: Path, pixels: np.ndarray, **how: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".tif":
        imwrite(file, pixels, **how)
    else:
        Image.fromarray(pixels).save(file)


def folders(root: Path, images: str, truth: str, *, suffix: str = ".png", names: str = "im{k}") -> None:
    """Images and their truth under patterns of `{name}`."""
    for k in range(N):
        image, labels = draw(k)
        name = names.format(k=k)
        save(root / (images.format(name=name) + suffix), image)
        is_mask = "mask" in truth and "cp" not in truth
        save(root / (truth.format(name=name) + suffix), 255 * (labels > 0).astype(np.uint8) if is_mask else labels)


@pytest.mark.parametrize(
    ("images", "truth"),
    [
        ("images/{name}", "masks/{name}"),
        ("images/{name}", "labels/{name}"),
        ("images/{name}", "ground_truth/{name}"),
        ("images/{name}", "masks/{name}_cp_masks"),
        ("{name}", "{name}_mask"),
        ("{name}", "{name}_cp_masks"),
        ("{name}", "{name}_label"),
        ("{name}", "{name}-labels"),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_folder_is_taken_however_masks_lie(images, truth, suffix, tmp_path):
    folders(tmp_path / "mine", images, truth, suffix=suffix)
    found = examine("mine", str(tmp_path / "mine"))
    cells = [draw(k)[1].max() for k in range(N)]
    assert (found.found.n_images, found.found.n_objects) == (N, sum(cells))
    study = Study.model_validate(yaml.safe_load(found.text()))
    dataset = open_dataset(study.data.train, channels=study.data.channels, normalise=study.data.normalise)
    assert sorted(dataset.n_objects) == sorted(cells)


def test_training_and_test_folders_are_an_official_split(tmp_path):
    for part, names in (("train", "a{k}"), ("test", "b{k}")):
        folders(tmp_path / "mine" / part, "{name}", "{name}_label", names=names)
    found = examine("mine", str(tmp_path / "mine"))
    assert found.has_official_test and found.found.splits == {"trainval": N, "test": N}
    assert "test_fraction" not in found.text()


def test_the_channel_that_shows_the_cells_is_taken_alone(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(N):
        image, labels = draw(k)
        noise = rng.integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
        noise[..., 1] = image
        save(tmp_path / "mine/images" / f"{k}.png", noise)
        save(tmp_path / "mine/labels" / f"{k}.png", labels)
    found = examine("mine", str(tmp_path / "mine"))
    assert (found.reading.channel, found.is_gray) == (2, True)
    assert Study.model_validate(yaml.safe_load(found.text())).data.channel == 2


def test_of_two_channels_and_of_stacks_the_signal_is_found(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(N):
        image, labels = draw(k)
        noise = rng.integers(0, 60, (SIDE, SIDE)).astype(np.uint8)
        save(tmp_path / "two/images" / f"{k}.tif", np.stack([noise, image]), imagej=True, metadata={"axes": "CYX"})
        save(tmp_path / "deep/images" / f"{k}.tif", np.stack([noise, image]), imagej=True, metadata={"axes": "ZYX"})
        for name in ("two", "deep"):
            save(tmp_path / name / "labels" / f"{k}.tif", labels)
    two, deep = (examine(name, str(tmp_path / name)) for name in ("two", "deep"))
    assert (two.reading.channel, two.reading.plane) == (2, None)
    assert (deep.reading.channel, deep.reading.plane) == (None, "max")


def test_what_cannot_be_a_study_is_refused_with_its_reason(tmp_path):
    folders(tmp_path / "alone", "images/{name}", "other/{name}")
    with pytest.raises(DataError, match="images/ without masks"):
        examine("alone", str(tmp_path / "alone"))
    for k in range(N):
        save(tmp_path / "empty/images" / f"{k}.png", draw(k)[0])
        save(tmp_path / "empty/masks" / f"{k}.png", np.zeros((SIDE, SIDE), np.uint8))
    with pytest.raises(DataError, match="no cell"):
        examine("empty", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="no such folder or file"):
        examine("nowhere", str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Proposal:
    root = tmp_path_factory.mktemp("data") / "mine"
    folders(root, "images/{name}", "labels/{name}", names="mouse{k}")
    return examine("mine", str(root))


def test_settings_follow_from_what_is_found(mine):
    share = np.mean([(draw(k)[1] > 0).mean() for k in range(N)])
    assert mine.cell_weight == round((1 - share) / share)
    areas = np.concatenate([np.bincount(draw(k)[1].ravel())[1:] for k in range(N)])
    assert mine.diameter_px == pytest.approx(np.median(np.sqrt(4 * areas / np.pi)))
    assert mine.crop_px % 8 == 0 and 64 <= mine.crop_px <= SIDE
    assert mine.normalise == "none"  # 8 bits, and bright
    assert replace(mine, is_complete=True).text().count("label:") == 12


def test_names_that_begin_alike_are_groups():
    animals = [f"mouse{m}_slice{s}_f{k}" for m in range(5) for s in range(2) for k in range(2)]
    assert guess_groups(animals) == r"^[^-_ .]+"
    wells = [f"plate_{row}0{k}_s{s}" for row in "ABC" for k in range(3) for s in range(3)]
    assert guess_groups(wells) == r"^[^-_ .]+[-_ .]+[^-_ .]+"
    assert guess_groups([f"im_{k:03}" for k in range(30)]) == ""
    assert guess_groups([]) == ""


def test_groups_by_name_stay_together_in_a_study(tmp_path):
    for k in range(N):
        image, labels = draw(k)
        save(tmp_path / "mine/images" / f"m{k // 2}_{k}.png", image)
        save(tmp_path / "mine/labels" / f"m{k // 2}_{k}.png", labels)
    found = examine("mine", str(tmp_path / "mine"))
    study = Study.model_validate(yaml.safe_load(found.text()))
    dataset = open_dataset(study.data.train, channels=1, normalise="none")
    assert dataset.groups == [f"m{k}" for k in range(N // 2) for _ in range(2)]
    wrong = study.data.train.model_copy(update={"groups": r"^x(\d)"})
    with pytest.raises(DataError, match=r"groups: the image 'm\d_\d+' doesn't have the pattern"):
        open_dataset(wrong, channels=1, normalise="none")


def test_a_budget_carries_seeds_first_and_then_steps(mine):
    def cost_of(study: Study) -> Any:  # 0.1 s a step and a trial at a time
        seconds = 0.1 * study.training.steps * len(study.seeds) * len(study.configurations)
        return SimpleNamespace(total_s=seconds)

    def plan(budget_s: float) -> tuple[int, int, float]:
        proposal, takes_s = within_budget(mine, budget_s, cost_of)
        return proposal.n_seeds, proposal.steps, takes_s

    assert plan(1e9) == (10, 2000, 12_000)
    assert plan(3600) == (5, 1000, 3000)  # 6 losses x 5 seeds x 1000 steps; 1500 would take 4500 s
    assert plan(900) == (5, 300, 900)
    assert plan(899) == (3, 300, 540)
    assert plan(1) == (3, 150, 270)  # nothing fits: the least


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2h", 7200), ("1.5h", 5400)]
)
def test_budgets_are_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-1h", "0m", "1h30"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(StudyError, match="expected a time"):
        seconds_of(text)


@pytest.mark.parametrize(("several", "said"), [(True, False), (False, True)])
def test_only_masks_without_numbers_are_said_to_merge_cells(several, said, tmp_path):
    for k in range(N):
        image, labels = draw(k)
        save(tmp_path / f"{k}.png", image)
        save(tmp_path / f"{k}_mask.png", labels if several else 255 * (labels > 0).astype(np.uint8))
    notes = list(examine("mine", str(tmp_path)).warnings())
    assert any("don't tell touching cells apart" in note for note in notes) is said


def test_dice_by_batch_is_a_candidate_where_cells_are_rare(tmp_path):
    folders(tmp_path / "common", "images/{name}", "labels/{name}")
    common = examine("common", str(tmp_path / "common"))
    rare = replace(common, found=replace(common.found, foreground_percent=(2.0, 5.0)))
    assert common.found.foreground_percent[0] > 3 and "Dice by batch" not in common.losses
    study = Study.model_validate(yaml.safe_load(rare.text()))
    assert [c.label for c in study.configurations][:2] == ["Dice", "Dice by batch"]
    assert study.configurations[1].loss.build().terms[0].settings["reduction"] == "batch"
