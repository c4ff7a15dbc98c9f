"""All seeds of a configuration as one model: their mean probability, and a point chosen on what they haven't seen."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tifffile import imread, imwrite
from tiny_study import draw_images, tiny_study, train_all

from cellray.data import split_dataset
from cellray.ensemble import load_ensemble, predict_unseen
from cellray.errors import DataError, LedgerError
from cellray.evaluation import predict_image
from cellray.ledger import Ledger
from cellray.operating_point import choose_point
from cellray.prediction import TrainedModel
from cellray.tracking import register_model, sync
from cellray.trial import Sets

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.slow]

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[None, 7], ids=["a split each", "one split"])
def trained(request, tmp_path_factory):
    """Three seeds, with validation images of their own or the same for all."""
    folder = tmp_path_factory.mktemp("trained")
    images = draw_images(folder / "disks", n_trainval=8, n_test=2)
    study = tiny_study(
        images,
        data={"train": {"name": "disks", "path": str(images)}, "val_fraction": 0.3, "split_seed": request.param},
        seeds=[0, 1, 2],
        model={"base_features": 4},
        training={"steps": 25, "batch_size": 6, "precision": "float32"},
        configurations=[{"label": "Dice", "loss": {"name": "dice"}}],
    )
    ledger = Ledger(str(folder / "storage"), study.name)
    sets, records, _ = train_all(study, ledger)
    assert {record.outcome for record in records} == {"finished"}
    singles = [TrainedModel.stored(ledger, record) for record in records]
    return SimpleNamespace(study=study, sets=sets, ledger=ledger, records=records, singles=singles, images=images)


def closed() -> NoReturn:
    raise AssertionError("the data aren't needed any more")


def together(trained: SimpleNamespace, **how) -> TrainedModel:
    how = {"open_sets": lambda: trained.sets, **how}
    return load_ensemble(trained.ledger, trained.study.trials(), **how)


def probs_of(model: TrainedModel, image: np.ndarray) -> np.ndarray:
    return predict_image(model.network, image, device=CPU, precision="float32")


def test_probabilities_are_the_mean_of_the_seeds(trained):
    model, image = together(trained), trained.sets.train.image(0)
    expected = np.mean([probs_of(single, image).astype(np.float64) for single in trained.singles], axis=0)
    np.testing.assert_allclose(probs_of(model, image), expected, atol=1e-5)
    assert model.find_cells(image).count > 0


def test_no_network_chooses_by_an_image_that_it_was_trained_on(trained):
    """Of each image the mean over those seeds alone whose split has it for validation; by these the point is chosen."""
    train, data = trained.sets.train, trained.study.data
    splits = [
        split_dataset(
            train,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            split_seed=seed if data.split_seed is None else data.split_seed,
        )
        for seed in trained.study.seeds
    ]
    expected = {}
    for index in range(len(train)):
        mine = [one for one, split in zip(trained.singles, splits, strict=True) if index in split.val]
        assert not any(index in split.train for split in splits if index in split.val)
        if mine:
            expected[index] = np.mean([probs_of(one, train.image(index)) for one in mine], axis=0)
    found = predict_unseen(trained.singles, trained.study.trials(), trained.sets, threads=1)
    assert found.probs.keys() == expected.keys()
    for index, probs in expected.items():
        np.testing.assert_allclose(found.probs[index], probs, atol=1e-5)
    point = choose_point(
        expected, {i: train.labels(i) for i in expected}, train.diameter_px, trained.study.evaluation
    ).point
    record = together(trained).ensemble
    assert record.operating_point == point
    if trained.study.data.split_seed is None:
        assert (record.fewest_members, record.n_images) == (1, len(expected))
        assert "members not trained on it" in record.how_chosen
    else:
        assert record.how_chosen == f"{len(splits[0].val)} validation images"


def test_it_is_chosen_once_and_kept(trained):
    first = together(trained).ensemble
    assert together(trained, open_sets=closed).ensemble == first
    assert first.title == "Dice, ensemble of seeds 0, 1, 2"


def test_other_images_than_those_of_the_training_choose_nothing(trained, tmp_path):
    images = draw_images(tmp_path / "others", n_trainval=8, n_test=2, seed=1)
    sets = Sets.open(tiny_study(images).data)
    with pytest.raises(DataError, match="Dice, seed 0 was trained on other images"):
        predict_unseen(trained.singles, trained.study.trials(), sets, threads=1)


def test_one_seed_is_no_ensemble(trained, tmp_path):
    ledger = Ledger(str(tmp_path / "one"), "one")
    train_all(trained.study.model_copy(update={"seeds": (0,)}), ledger)
    with pytest.raises(LedgerError, match="two finished seeds or more of 'Dice'; there are: seed 0 finished"):
        load_ensemble(ledger, trained.study.trials(), open_sets=closed)


@pytest.mark.parametrize("trained", [7], indirect=True, ids=["one split"])
def test_a_registered_ensemble_finds_what_predict_finds(trained, tmp_path):
    import mlflow

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    sync(trained.ledger, trained.study, store)
    model = together(trained)
    done = register_model(trained.ledger, trained.study, store, ensemble=model.ensemble)
    assert done.seeds == (0, 1, 2)
    assert register_model(trained.ledger, trained.study, store, ensemble=model.ensemble).is_new is False
    alone = register_model(trained.ledger, trained.study, store)
    assert (alone.version, alone.is_new) == ("2", True)
    file = next((trained.images / "test" / "images").glob("*.png"))
    raw = (np.asarray(Image.open(file)).astype(np.uint16) * 257)[:50, :61]
    imwrite(tmp_path / "raw.tif", raw, photometric="rgb")
    cells = model.find_cells(model.converted((tmp_path / "raw.tif").read_bytes(), "raw.tif"))
    mlflow.set_tracking_uri(store)
    served = mlflow.pyfunc.load_model(f"models:/{done.name}/{done.version}")
    found = served.predict(pd.DataFrame({"image": [(tmp_path / "raw.tif").read_bytes()]})).iloc[0]
    labels = imread(io.BytesIO(base64.b64decode(found["labels"])))
    np.testing.assert_array_equal(labels, cells.labels)
    pd.testing.assert_frame_equal(pd.DataFrame(found["cells"]), cells.table())
