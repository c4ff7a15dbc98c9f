"""Training steps compiled: the same network, the same course up to rounding, and never a reason to fail."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import some_networks
import torch
from pictures import tiny_trial
from test_training import Store, WorkerKilledError, same_weights, train, untimed
from tiny_study import draw_images, tiny_study

from cellray.ledger import Ledger
from cellray.study import ModelConfig, TrainingConfig, Trial
from cellray.study.yaml_tree import read_tree, write_tree
from cellray.training import Fit
from cellray.training.compiling import compile_network
from cellray.trial import Sets, run_trial

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs the C++ compiler g++")
NETWORK = "some_networks:ShallowCResUnet"


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    """What one test compiles, the others find; and one thread, as in a trial."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        yield
    torch.set_num_threads(threads)


def a_trial(**training) -> Trial:
    """Of a network with every block of c-ResUnet, which compiles in seconds; all of it takes a minute."""
    model = ModelConfig.model_validate({"name": NETWORK}, context={"code": "allowed"})
    return tiny_trial(**({"compile": "on"} | training)).model_copy(update={"model": model})


def test_it_decides_no_trial_key():
    keys = {tiny_trial(compile=word).key("f") for word in ("auto", "on", "off")}
    assert len(keys) == 1


@pytest.mark.parametrize("word", ["auto", "on", "off"])
def test_a_study_file_says_it_in_a_plain_word(word):
    tree, _ = read_tree(f"steps: 1\ncompile: {word}")  # on and off are truth values to older readers of YAML
    training = TrainingConfig.model_validate(tree)
    assert training.compile == word
    assert read_tree(write_tree(training.model_dump(mode="json")))[0]["compile"] == word
    assert TrainingConfig(steps=1).compile == "auto"


def run_python(code: str, env: dict[str, str] | None = None) -> str:
    """What a process of its own prints."""
    here = Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", code], cwd=here, env=env, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def test_a_training_that_is_not_compiled_loads_no_compiler():
    code = (
        "import sys; from test_training import *; train(tiny_trial(epochs=1)); "
        "print('torch._inductor.compile_fx' in sys.modules)"
    )
    assert run_python(code) == "False\n"


def killed(trial: Trial) -> Store:
    """What a training leaves that ends after two of its four epochs."""
    store = Store()

    def die(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise WorkerKilledError

    with pytest.raises(WorkerKilledError):
        train(trial, store, on_epoch=die)
    return store


class TestWithoutACompiler:
    """One note, and then what would have been without."""

    def goes_on(self, words: str, **changes) -> None:
        notes: list[str] = []
        fitted, plain = train(a_trial(), on_note=notes.append, **changes), train(a_trial(compile="off"))
        assert len(notes) == 1
        assert words in notes[0]
        assert notes[0].startswith("training.compile on ")
        assert fitted.run.compiler == ""
        assert fitted.run.compiled_steps == 0
        assert same_weights(fitted.best_state, plain.best_state)
        assert untimed(fitted.run.history) == untimed(plain.run.history)

    def test_there_is_none(self, monkeypatch):
        monkeypatch.setenv("CXX", "none-of-this-name")
        self.goes_on("there is no C++ compiler (none-of-this-name)")

    @pytest.mark.slow
    def test_it_fails(self, tmp_path):
        code = (
            "from test_compiling import *; notes = []; run = train(a_trial(), on_note=notes.append).run; "
            "print(run.step, run.compiled_steps, len(notes), *notes)"
        )
        env = {**os.environ, "CXX": "/bin/false", "CELLRAY_CACHE": str(tmp_path)}  # where nothing was compiled before
        done = run_python(code, env)
        assert done.startswith("8 0 1 training.compile on ")
        assert "No working C++ compiler" in done

    @pytest.mark.slow
    def test_the_network_is_none_that_can_be_compiled(self, monkeypatch):
        monkeypatch.setattr(
            some_networks.ShallowCResUnet, "forward", torch.compiler.disable(some_networks.ShallowCResUnet.forward)
        )
        self.goes_on("nothing in the network can be compiled")

    def test_the_cache_can_not_be_written(self, monkeypatch, tmp_path):
        (tmp_path / "cache").write_text("no folder")
        monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))
        self.goes_on("NotADirectoryError")


@pytest.fixture(scope="module")
def compiled():
    """A training of eight compiled steps."""
    return train(a_trial(), on_note=pytest.fail)


def digest(fitted: Fit) -> str:
    """Of the weights' bits."""
    return hashlib.sha256(b"".join(values.numpy().tobytes() for values in fitted.best_state.values())).hexdigest()


def assert_same_course(one: Fit, other: Fit) -> None:
    """The same losses, up to what rounding does to eight steps."""
    for mine, its in zip(one.run.history, other.run.history, strict=True):
        assert mine["train_loss"] == pytest.approx(its["train_loss"], rel=0.01)
        assert mine["val_loss"] == pytest.approx(its["val_loss"], rel=0.02)


@needs_compiler
@pytest.mark.slow
class TestCompiled:
    def test_the_same_course_up_to_rounding_with_the_same_names(self, compiled):
        plain = train(a_trial(compile="off"))
        assert compiled.run.compiled_steps == compiled.run.step == plain.run.step == 8
        assert "Inductor" in compiled.run.compiler
        assert compiled.run.compile_s > 0
        assert plain.run.compiler == ""
        assert compiled.best_state.keys() == plain.best_state.keys()
        assert_same_course(compiled, plain)

    def test_it_repeats_to_the_bit(self, compiled):
        again = train(a_trial())
        assert same_weights(again.best_state, compiled.best_state)
        assert untimed(again.run.history) == untimed(compiled.run.history)

    def test_it_repeats_to_the_bit_in_a_process_where_nothing_was_compiled_before(self, compiled, tmp_path):
        code = (
            "from test_compiling import *; torch.set_num_threads(1); fitted = train(a_trial()); "
            "print(fitted.run.compiled_steps, digest(fitted))"
        )
        assert run_python(code, {**os.environ, "CELLRAY_CACHE": str(tmp_path)}) == f"8 {digest(compiled)}\n"
        assert list(tmp_path.glob("compiled/*/**/*.so"))

    def test_after_a_kill_it_goes_on_to_the_same_bits(self, compiled):
        store = killed(a_trial())
        resumed = train(a_trial(), store)
        assert same_weights(resumed.best_state, compiled.best_state)
        assert resumed.run.compiled_steps == 8

    def test_it_goes_on_without_a_compiler_and_says_how_far_it_was_compiled(self, compiled, monkeypatch):
        store, notes = killed(a_trial()), []
        monkeypatch.setenv("CXX", "none-of-this-name")
        resumed = train(a_trial(), store, on_note=notes.append)
        assert len(notes) == 1
        assert resumed.run.step == 8
        assert resumed.run.compiled_steps == 4
        assert_same_course(resumed, compiled)

    def test_one_that_began_without_stays_so(self, monkeypatch):
        plain = train(a_trial(compile="off"))
        resumed = train(a_trial(), killed(a_trial(compile="off")))
        assert resumed.run.compiled_steps == 0
        assert same_weights(resumed.best_state, plain.best_state)

    def test_compiling_moves_neither_weights_nor_statistics_nor_random_numbers(self):
        trial = a_trial()
        torch.manual_seed(0)
        network = trial.model.build(1)
        before = {name: values.clone() for name, values in network.state_dict().items()}
        images = torch.rand(4, 1, 32, 32).contiguous(memory_format=torch.channels_last)
        drawn = torch.get_rng_state()
        compile_network(network, images, CPU, "float32")
        assert same_weights(network.state_dict(), before)
        assert all(p.grad is None for p in network.parameters())
        assert torch.equal(torch.get_rng_state(), drawn)

    def test_a_record_says_so(self, tmp_path):
        images = {"train": {"name": "disks", "path": str(draw_images(tmp_path / "images"))}, "val_fraction": 0.25}
        as_before = {"compile": "on", "batch_size": 4, "precision": "float32"}  # what was compiled for these is kept
        study = tiny_study(tmp_path, data=images | {"channels": 1}, training=as_before)
        trial = study.trials()[0].model_copy(update={"model": a_trial().model})
        sets, ledger = Sets.open(study.data), Ledger(str(tmp_path / "studies"), study.name)
        record = run_trial(trial, sets, ledger)
        assert record.outcome == "finished"
        assert record.compiled.steps == record.steps == 6
        assert record.compiled.compiler.startswith("Inductor, ")
        assert record.seconds.compilation > 0
        assert ledger.record(record.key) == record
