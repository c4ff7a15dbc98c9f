"""The whole way, as the tutorial goes it: init, sweep, verdict, predict, register, serve, a request with a raw image.

The commands and the request are taken from `docs/tutorial.md`. Only what `init` wrote is shortened before it is run.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import run_apart, run_here
from PIL import Image
from services import answers, free_port, process
from tifffile import imread, imwrite
from tiny_study import draw_images

TUTORIAL = (Path(__file__).parents[1] / "docs/tutorial.md").read_text()
COMMANDS = [shlex.split(line[2:]) for line in TUTORIAL.splitlines() if line.startswith("$ ")]


def command(word: str) -> list[str]:
    """The tutorial's command of this name, without `cellray`."""
    (found,) = [words[1:] for words in COMMANDS if words[:2] == ["cellray", word]]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ten images and their labels, and new images of 16 bits: real nuclei; disks where there are none."""
    folder = tmp_path_factory.mktemp("way")
    for name in ("my_images/images", "my_images/labels", "new_images"):
        (folder / name).mkdir(parents=True)
    for i, (image, labels) in enumerate(pictures(folder)):
        Image.fromarray(image).save(folder / f"my_images/images/nuclei_{i:02}.png")
        Image.fromarray(labels).save(folder / f"my_images/labels/nuclei_{i:02}.png")
        if i < 2:
            imwrite(folder / f"new_images/field_{i}.tif", image.astype(np.uint16) * 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLRAY_CACHE", str(folder / "cache"))
        yield folder


def pictures(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ten gray images with labels."""
    shared = Path(os.environ.get("CELLRAY_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    pack = shared / "data/dsb2018_fluo.zip"
    if pack.exists():
        with zipfile.ZipFile(pack) as archive:
            rows = csv.DictReader(io.StringIO(archive.read("manifest.csv").decode()))
            chosen = [r["file"] for r in rows if r["size_class"] == "256x256" and 20 <= int(r["n_objects"]) <= 40]
            for file in sorted(chosen)[:10]:
                image, labels = (Image.open(io.BytesIO(archive.read(f"{k}/{file}"))) for k in ("images", "labels"))
                yield np.asarray(image.convert("L"))[:128, :128], np.asarray(labels).astype(np.uint16)[:128, :128]
        return
    for file in sorted((draw_images(folder / "drawn", n_trainval=10, n_test=1) / "trainval/images").glob("*.png")):
        mask = Image.open(file.parents[1] / "ground_truths/masks" / file.name)
        yield np.asarray(Image.open(file).convert("L")), np.asarray(mask).astype(np.uint16)


def shorten(file: Path) -> None:
    """Two losses, one seed and a few steps of what `init` wrote."""
    study = yaml.safe_load(file.read_text())
    study["configurations"] = study["configurations"][:2]
    study["seeds"] = study["seeds"][:1]
    study["training"] |= {"steps": 40, "crop_px": 64, "batch_size": 4, "validate_every": 5, "lr": 0.01}
    study["resources"] = (study.get("resources") or {}) | {"max_concurrent": 1}
    file.write_text(yaml.safe_dump(study))


@pytest.mark.slow
def test_from_a_folder_of_images_to_a_served_model(place):
    assert run_here(*command("data"), cwd=place, env={}).returncode == 0
    assert (place / "preview.png").stat().st_size > 1000

    begun = run_here(*command("init"), cwd=place, env={})
    assert begun.returncode == 0, begun.stderr
    assert begun.stdout.rstrip().endswith(f"next: cellray {' '.join(command('sweep'))}")
    shorten(place / "my_images.yaml")

    swept = run_apart(*command("sweep"), cwd=place, env={})
    assert swept.returncode == 0, swept.stderr
    verdict = (place / "studies/my_images/report/verdict.txt").read_text()
    assert " ".join(verdict.split()) in " ".join(swept.stdout.split())

    counted = run_here(*command("predict"), cwd=place, env={})
    assert counted.returncode == 0, counted.stderr
    expected = imread(place / "counted/labels/field_0.tif")
    assert expected.max() > 0

    registered = run_here(*command("register"), cwd=place, env={})
    assert "registered as my_images, version 1" in registered.stdout
    told = registered.stdout.partition("serve it: ")[2].split()
    (serve,) = [words for words in COMMANDS if "serve" in words]
    assert serve[1:] == told[1:]  # the address of the store is the whole one there
    words = [*told[1:], "--host", "127.0.0.1"]
    port, name = free_port(), told[0].partition("=")
    words[words.index("--port") + 1] = str(port)
    path = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}"  # it starts uvicorn by name
    env = {name[0]: name[2], "OMP_NUM_THREADS": "1", "PATH": path}
    run = [sys.executable, "-m", *words]
    (request,) = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    with process(run, place / "serve.log", lambda: answers(f"http://127.0.0.1:{port}/ping"), env):
        said: list[object] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            exec(request.replace(":5001", f":{port}"), {"print": lambda *words: said.extend(words)})
    np.testing.assert_array_equal(imread(place / "served.tif"), expected)
    assert said[0] == expected.max()
