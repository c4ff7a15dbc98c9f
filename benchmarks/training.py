"""How fast trainings run, as ratios of processes that take turns within one run.

    python benchmarks/training.py [--quick] [--device cuda] [--results FOLDER]

Four questions: what real data costs beside the bare training step; how much faster that is than a plain PyTorch
loop (a DataLoader that decodes a PNG for each item, SciPy augmentation, float32, contiguous, plain Adam, the same
network and loss); how much faster compiled steps are (`training.compile`), whose compilation isn't counted; and whether
two trials with one thread each get more done together than one trial with two threads.
The images are real where the shared data is at hand ($CELLRAY_SHARED, or `shared` beside the project), else drawn. Each
contender is a process of its own with the environment it would have, waits for its turn, trains a few steps and says
how long they took; a ratio is the median over the rounds. Exit code 1 if a bar is missed.

Beside the plain loop stand those of MONAI and Lightning, where they are installed. On a GPU these three have eight
loading processes, and the compiled step stands there, too; what real data leave of the bare step's pace is the share of
time the GPU is busy. There are no bars there yet. `--results` writes training-<device>.json and .md; `cellray plan
--rate` takes the first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gauge import gauge
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from cellray.data import Dataset, Split, open_dataset
from cellray.device import ALLOCATOR_ENV, autocast, has_gpu
from cellray.study import DataConfig, DatasetConfig, EvaluationConfig, LossConfig, ModelConfig, TrainingConfig, Trial

BASE_FEATURES = 16
CHANNELS = 3
SHAPES = {"4x512": (4, 512), "8x128": (8, 128)}
"""Batch size and crop side of each kind of batch."""
PEERS = {"monai": "ignite", "lightning": "lightning"}
"""Other libraries' loops, each with the module that it takes."""
LEAST_OF_COMPILED = {"4x512": 1.15, "8x128": 1.0}
LEAST_OF_BARE, LEAST_OF_PLAIN, LEAST_TOGETHER = 0.92, {"4x512": 4.0, "8x128": 2.5}, 1.05


def prepare_images(folder: Path) -> str:
    """Write images/ and labels/ of PNGs that hold a crop of 512 px; returns where they come from."""
    shared = Path(os.environ.get("CELLRAY_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    pack = shared / "data" / "dsb2018_fluo.zip"
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    pictures = _real_images(pack, folder / "cache") if pack.exists() else _drawn_images()
    for k, (image, labels) in enumerate(pictures):
        Image.fromarray(image).save(folder / "images" / f"{k:02d}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{k:02d}.png")
    return pack.name if pack.exists() else "drawn"


def _real_images(pack: Path, cache: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.integer]]]:
    where: dict[str, tuple[str, ...]] = {"size_class": ("696x520", "640x512", "1272x603")}
    config = DatasetConfig(name="dsb2018", path=str(pack), where=where, diameter_px=16.6)
    dataset = open_dataset(config, channels=CHANNELS, normalise="percentile", cache_dir=cache)
    for k in range(len(dataset)):
        yield dataset.image(k), dataset.labels(k)


def _drawn_images() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.integer]]]:
    rng, (y, x) = np.random.default_rng(0), np.indices((520, 696))
    for _ in range(32):
        labels = np.zeros((520, 696), np.uint16)
        for number in range(1, 80):
            cy, cx, radius = rng.uniform(0, 520), rng.uniform(0, 696), rng.uniform(6, 11)
            labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = number
        gray = ndimage.gaussian_filter(150.0 * (labels > 0), 1) + rng.normal(40, 8, labels.shape)
        yield np.repeat(np.clip(gray, 0, 255).astype(np.uint8)[..., None], CHANNELS, axis=2), labels


def a_trial(shape: str, *, compiled: bool = False) -> Trial:
    """A training that never ends by itself, in the shape of the given batches."""
    batch_size, crop_px = SHAPES[shape]
    return Trial(
        study="benchmark",
        label="dice",
        seed=0,
        protocol="strict",
        data=DataConfig(train=DatasetConfig(name="images", path="images")),
        model=ModelConfig(base_features=BASE_FEATURES),
        loss=LossConfig(name="dice"),
        training=TrainingConfig(
            epochs=10**6,
            validate_every=10**6,
            batch_size=batch_size,
            crop_px=crop_px,
            lr=1e-3,
            schedule="constant",
            compile="on" if compiled else "off",
        ),
        evaluation=EvaluationConfig(),
    )


def work(kind: str, folder: Path, shape: str, steps: int, threads: int) -> None:
    """A contender's process: for each line that comes in, train `steps` steps and answer with the seconds."""
    from cellray.device import prepare

    prepare(_device(), threads)
    loops = {"cellray": _train_cellray, "cellray, compiled": _train_cellray}
    loops |= {"bare": _train_bare, "compiled": _train_bare}
    loops |= {"monai": _train_monai, "lightning": _train_lightning}
    loops.get(kind.rstrip("0123456789"), _train_plain)(kind, folder, shape, steps)


def _device() -> Any:
    import torch

    return torch.device(os.environ.get("BENCHMARK_DEVICE", "cpu"))


def _answer(seconds: float) -> None:
    print(json.dumps(seconds), flush=True)
    if not sys.stdin.readline():
        raise SystemExit


def _train_cellray(kind: str, folder: Path, shape: str, steps: int) -> None:
    """The real loop: `fit`, with as many images as make an epoch of `steps`."""
    from cellray.training import fit

    config = DatasetConfig(name="images", path=str(folder), diameter_px=16.6)
    dataset: Dataset = open_dataset(config, channels=CHANNELS, normalise="none", cache_dir=folder / "cache")
    images = [k % len(dataset) for k in range(steps * SHAPES[shape][0])]
    fit(
        a_trial(shape, compiled="compiled" in kind),
        dataset,
        Split(images, [0], [0], ""),
        device=_device(),
        load=lambda name: None,
        save=lambda name, data: None,
        on_epoch=lambda row: _answer(len(images) / row["images_per_s"]),
        on_note=lambda words: print(words, file=sys.stderr),
    )


def _train_bare(kind: str, folder: Path, shape: str, steps: int) -> None:
    """The same loop on one batch that is there already, compiled or not."""
    import torch

    from cellray.training.crops import Batch, CropSampler

    batch_size, crop_px = SHAPES[shape]
    device = _device()
    images = torch.rand(batch_size, CHANNELS, crop_px, crop_px, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = (torch.rand(batch_size, 1, crop_px, crop_px, device=device) < 0.1).float()
    CropSampler.batch = lambda self, step, purpose=0: Batch(images, targets, {}, None)  # type: ignore[method-assign]
    _train_cellray(kind, folder, shape, steps)


class PlainDataset:
    """What a first PyTorch loop has: decode, cut a crop, change it, make tensors, item by item."""

    def __init__(self, folder: Path, crop_px: int) -> None:
        self.folder, self.crop_px = folder, crop_px
        self.names = sorted(path.name for path in (folder / "images").glob("*.png"))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, k: int) -> tuple[Any, Any]:
        import torch

        rng, side = np.random.default_rng(), self.crop_px
        image = np.asarray(Image.open(self.folder / "images" / self.names[k]).convert("RGB"))
        mask = np.asarray(Image.open(self.folder / "labels" / self.names[k])) > 0
        top, left = rng.integers(0, image.shape[0] - side + 1), rng.integers(0, image.shape[1] - side + 1)
        image = image[top : top + side, left : left + side].astype(np.float32) / 255
        mask = mask[top : top + side, left : left + side].astype(np.float32)
        angle, scale = np.radians(rng.uniform(-15, 15)), rng.uniform(0.9, 1.1)
        flips = rng.choice([-1.0, 1.0], 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * flips / scale
        middle = np.full(2, (side - 1) / 2)
        how: dict[str, Any] = {"matrix": turn, "offset": middle - turn @ middle, "mode": "reflect"}
        image = np.stack([ndimage.affine_transform(c, order=1, **how) for c in np.moveaxis(image, 2, 0)])
        mask = ndimage.affine_transform(mask, order=0, **how)
        image = (image - image.mean()) * rng.uniform(0.9, 1.1) + image.mean() * rng.uniform(0.9, 1.1)
        return torch.from_numpy(np.clip(image, 0, 1).astype(np.float32)), torch.from_numpy(mask)[None]


def _plain_batches(kind: str, folder: Path, shape: str) -> Any:
    """Batches of a plain loop, from as many loading processes as `kind` ends in."""
    from torch.utils.data import DataLoader, RandomSampler

    batch_size, crop_px = SHAPES[shape]
    data: Any = PlainDataset(folder, crop_px)
    endless = RandomSampler(data, replacement=True, num_samples=10**7)
    pinned = _device().type == "cuda"
    return DataLoader(data, batch_size, sampler=endless, num_workers=int(kind[-1]), pin_memory=pinned)


def _train_plain(kind: str, folder: Path, shape: str, steps: int) -> None:
    """The plain loop."""
    import torch

    from cellray.losses import dice_loss
    from cellray.model import CResUnet

    device = _device()
    model = CResUnet(BASE_FEATURES, CHANNELS).train().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    started = time.perf_counter()
    for done, (images, target) in enumerate(_plain_batches(kind, folder, shape), start=1):
        loss = dice_loss(model(images.to(device)), target.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        if done % steps == 0:
            _answer(time.perf_counter() - started)
            started = time.perf_counter()


def _train_monai(kind: str, folder: Path, shape: str, steps: int) -> None:
    """MONAI's trainer with mixed precision, the same network, loss and items."""
    import torch
    from ignite.engine import Events
    from monai.engines import SupervisedTrainer

    from cellray.losses import dice_loss
    from cellray.model import CResUnet

    model = CResUnet(BASE_FEATURES, CHANNELS).to(_device())
    trainer = SupervisedTrainer(
        device=_device(),
        max_epochs=1,
        train_data_loader=_plain_batches(kind, folder, shape),
        network=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        loss_function=dice_loss,
        prepare_batch=lambda batch, device, non_blocking, **_: tuple(
            part.to(device, non_blocking=True) for part in batch
        ),
        amp=_device().type == "cuda",
    )
    started = [time.perf_counter()]

    def ended(engine: Any) -> None:
        if engine.state.iteration % steps == 0:
            _answer(time.perf_counter() - started[0])
            started[0] = time.perf_counter()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, ended)
    trainer.run()


def _train_lightning(kind: str, folder: Path, shape: str, steps: int) -> None:
    """Lightning's trainer with mixed precision, the same network, loss and items."""
    import torch

    from cellray.losses import dice_loss
    from cellray.model import CResUnet, library

    library("torchvision")  # Lightning takes it, and by itself it ends beside a torch without GPUs
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.started = CResUnet(BASE_FEATURES, CHANNELS), time.perf_counter()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            return dice_loss(self.network(batch[0]), batch[1])

        def on_train_batch_end(self, outputs: Any, batch: Any, number: int) -> None:
            if (number + 1) % steps == 0:
                _answer(time.perf_counter() - self.started)
                self.started = time.perf_counter()

    trainer = Trainer(
        accelerator="gpu" if _device().type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), _plain_batches(kind, folder, shape))


def peers(n_processes: int) -> list[str]:
    """The loops of other libraries, as far as they are installed, with so many processes that load."""
    return [f"{kind}{n_processes}" for kind, module in PEERS.items() if find_spec(module)]


class Contender:
    """A process that trains when it is told to."""

    def __init__(self, kind: str, folder: Path, shape: str, *, steps: int, threads: int = 1) -> None:
        # A sweep's workers have the allocator's settings; who starts a plain script doesn't.
        extra = {} if kind.startswith(("plain", *PEERS)) else ALLOCATOR_ENV
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", kind, str(folder), shape, str(steps), str(threads)],
            env={**os.environ, **extra, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def go(self) -> None:
        """Start a turn."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def seconds(self) -> float:
        """Wait for the turn's end: how long it took."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender's process ended with {self.process.wait()}; see its message above")
        return float(json.loads(line))

    def turn(self) -> float:
        """One turn, alone."""
        self.go()
        return self.seconds()


def race(contenders: dict[str, Contender], rounds: int) -> list[dict[str, float]]:
    """Seconds of each contender in each round; the first turn, when a process starts, warms it up."""
    for contender in contenders.values():
        contender.seconds()
    return [{name: contender.turn() for name, contender in contenders.items()} for _ in range(rounds)]


def compare_loops(folder: Path, shape: str, steps: int, rounds: int) -> list[tuple[str, float, float]]:
    """Real data against the bare step, and against the better of two plain loops; the others' pace is printed."""
    kinds = ["bare", "cellray", "plain0", "plain1", *peers(1)]
    with ExitStack() as open_processes:
        contenders = {kind: open_processes.enter_context(Contender(kind, folder, shape, steps=steps)) for kind in kinds}
        took = race(contenders, rounds)
    images = steps * SHAPES[shape][0]
    rates = {kind: images / statistics.median(turn[kind] for turn in took) for kind in contenders}
    print(f"{shape}: images/s " + ", ".join(f"{kind} {rate:.2f}" for kind, rate in rates.items()), flush=True)
    of_bare = statistics.median(turn["bare"] / turn["cellray"] for turn in took)
    of_plain = statistics.median(min(turn["plain0"], turn["plain1"]) / turn["cellray"] for turn in took)
    return [
        (f"{shape}: real data / bare step", of_bare, LEAST_OF_BARE),
        (f"{shape}: cellray / plain loop", of_plain, LEAST_OF_PLAIN[shape]),
    ]


def compare_compiled(folder: Path, shape: str, steps: int, rounds: int) -> list[tuple[str, float, float]]:
    """The real loop compiled against the real loop as it was."""
    with ExitStack() as open_processes:
        contenders = {
            kind: open_processes.enter_context(Contender(kind, folder, shape, steps=steps))
            for kind in ("cellray", "cellray, compiled")
        }
        took = race(contenders, rounds)
    ratio = statistics.median(turn["cellray"] / turn["cellray, compiled"] for turn in took)
    return [(f"{shape}: compiled / not", ratio, LEAST_OF_COMPILED[shape])]


def compare_on_gpu(folder: Path, shape: str, steps: int, rounds: int) -> dict[str, float]:
    """Images a second of each contender that is installed."""
    kinds = ["bare", "compiled", "cellray", "plain8", *peers(8)]
    with ExitStack() as open_processes:
        contenders = {kind: open_processes.enter_context(Contender(kind, folder, shape, steps=steps)) for kind in kinds}
        took = race(contenders, rounds)
    images = steps * SHAPES[shape][0]
    return {kind: images / statistics.median(turn[kind] for turn in took) for kind in kinds}


def on_gpu(folder: Path, source: str, quick: bool, results: Path | None) -> int:
    """Measure, print, and write what was found."""
    steps, rounds = (4, 2) if quick else (40, 5)
    found = {shape: compare_on_gpu(folder, shape, steps, rounds) for shape in SHAPES}
    lines = ["| batch | " + " | ".join(next(iter(found.values()))) + " | busy | of plain |"]
    lines += ["| --- |" + " ---: |" * (lines[0].count("|") - 2)]
    for shape, rates in found.items():
        shares = f"{rates['cellray'] / rates['bare']:.2f} | {rates['cellray'] / rates['plain8']:.2f}"
        lines.append(f"| {shape} | " + " | ".join(f"{rate:.1f}" for rate in rates.values()) + f" | {shares} |")
    print("images/s\n" + "\n".join(lines))
    if results is not None:
        import torch

        name = torch.cuda.get_device_name() if _device().type == "cuda" else platform.processor() or platform.machine()
        mpx = {shape: rates["cellray"] * SHAPES[shape][1] ** 2 / 1e6 for shape, rates in found.items()}
        told = {"device": name, "torch": torch.__version__, "images": source, "images_s": found, "mpx_s": mpx}
        results.mkdir(parents=True, exist_ok=True)
        at = results / f"training-{_device().type}"
        at.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
        head = f"Images a second, {name}, torch {torch.__version__}, {source}, n = {BASE_FEATURES}:"
        at.with_suffix(".md").write_text("\n".join([head, "", *lines]) + "\n")
    return 0


def compare_sharing(folder: Path, shape: str, steps: int, rounds: int) -> list[tuple[str, float, float]]:
    """Two trials with a thread each, together, against one trial with both threads."""
    with ExitStack() as open_processes:
        a, b, wide = (
            open_processes.enter_context(Contender("cellray", folder, shape, steps=steps, threads=threads))
            for threads in (1, 1, 2)
        )
        for contender in (a, b, wide):
            contender.seconds()
        ratios = []
        for _ in range(rounds):
            alone = wide.turn()
            a.go()
            b.go()
            together = max(a.seconds(), b.seconds())  # for twice the images
            ratios.append(2 * alone / together)
    return [(f"{shape}: two 1-thread trials / one of 2", statistics.median(ratios), LEAST_TOGETHER)]


def main() -> int:
    """Run the races one after the other, print the table, say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps and rounds: a rough figure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: what a GPU does")
    parser.add_argument("--results", type=Path, help="folder for the figures of a GPU")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        kind, folder, shape, steps, threads = given.work
        work(kind, Path(folder), shape, int(steps), int(threads))
        return 0
    if given.device == "cuda" and "BENCHMARK_DEVICE" not in os.environ and not has_gpu():
        print("no figures of a GPU: torch sees none on this machine")
        return 0
    os.environ.setdefault("BENCHMARK_DEVICE", given.device)
    rounds = 2 if given.quick else 7
    print(gauge())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = prepare_images(folder)
        if given.device == "cuda":
            return on_gpu(folder, source, given.quick, given.results)
        print(f"images: {source}; n = {BASE_FEATURES}, {os.cpu_count()} cores, {platform.machine()}, {precision()}")
        results = compare_loops(folder, "8x128", 3 if given.quick else 8, rounds)
        results += compare_loops(folder, "4x512", 1 if given.quick else 2, rounds)
        for shape in SHAPES:
            steps = {"8x128": 8, "4x512": 2}[shape]
            results += compare_compiled(folder, shape, 1 if given.quick else steps, rounds)
        results += compare_sharing(folder, "8x128", 3 if given.quick else 8, rounds)
    for what, ratio, bar in results:
        print(f"{what:<40} {ratio:6.2f}   bar {bar:.2f}   {'reached' if ratio >= bar else 'MISSED'}")
    return 0 if all(ratio >= bar for _, ratio, bar in results) else 1


def precision() -> str:
    """What `precision: auto` means here."""
    import torch

    with autocast(torch.device("cpu"), "auto"):
        return "bfloat16" if torch.is_autocast_enabled("cpu") else "float32"


if __name__ == "__main__":
    raise SystemExit(main())
