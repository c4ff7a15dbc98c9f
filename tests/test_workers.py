"""Several workers for one trial: the numbers of one worker, one writer, one end for all."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from disturb import descendants, title
from pairs import start_pair
from pictures import Pictures, cells, thirds, tiny_trial
from tiny_study import draw_images, tiny_study
from torch import nn

from cellray.errors import StorageError, StudyError
from cellray.ledger import Ledger
from cellray.losses import LOSSES, dice_loss
from cellray.record import TrialRecord
from cellray.study import LossConfig, TermConfig, Trial
from cellray.sweep import connect
from cellray.sweep import judging as judging_module
from cellray.sweep.judging import Judging
from cellray.sweep.workers import WorkerError, own_error, run_with_workers
from cellray.training import ALONE, Team, fit
from cellray.training.batch_norm import share_batch_norm
from cellray.training.fitting import _Fitter
from cellray.trial import Sets, run_trial

pytestmark = pytest.mark.slow  # seconds each

CPU = torch.device("cpu")

CASES = {
    "dice": LossConfig(name="dice"),
    "dice of the batch": LossConfig(name="dice", settings={"reduction": "batch"}),
    "focal": LossConfig(name="focal"),
    "lovasz_hinge": LossConfig(name="lovasz_hinge"),
    "with maps": LossConfig(
        terms=(TermConfig(name="soft_panoptic"), TermConfig(name="boundary"), TermConfig(name="dice"))
    ),
}

# Float32 keeps 24 bits, 6e-8. Workers add the same numbers in another order, in sums of up to some thousand terms and
# through a dozen layers: about ten times that in what is near 1, and more in a small difference of large sums.
CLOSE = 2e-6
"""Of losses and logits, relative."""
CLOSE_GRADIENT = 5e-5
"""Length of the difference of two gradients, relative to the length of one."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with start_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def member(joined: bool) -> Team:
    return Team.joined() if joined else ALONE


class TestTeam:
    @pytest.mark.parametrize(("n", "size"), [(4, 2), (5, 2), (3, 3), (8, 3), (1, 2), (0, 2)])
    def test_shares_are_contiguous_complete_and_even(self, n, size):
        shares = [list(range(n))[Team(rank, size).share(n)] for rank in range(size)]
        assert [row for share in shares for row in share] == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def test_a_batch_needs_a_row_for_each(self):
        Team(0, 3).check_batch(3)
        with pytest.raises(StudyError, match=r"batch_size is 2, but 3 workers .* at most 2 for resources.workers"):
            Team(0, 3).check_batch(2)

    def test_alone_everything_is_what_it_was(self):
        rows, model = torch.rand(3, 1), nn.BatchNorm2d(2)
        assert ALONE.leads
        assert ALONE.gather(rows, 3) is rows
        assert ALONE.wrap(model, CPU) is model and type(model) is nn.BatchNorm2d
        assert (ALONE.merge([1, 2]), ALONE.first("a")) == ([1, 2], "a")

    @pytest.mark.parametrize("n", [2, 5])
    def test_gathered_rows_are_the_batch_and_gradients_add_up(self, pair, n):
        for rows, grad in pair(gathered, n):
            assert torch.equal(rows, whole_rows(n))
            assert torch.equal(grad, 2 * whole_rows(n))  # of the sum of squares

    def test_items_come_in_the_order_of_ranks_and_the_first_decides(self, pair):
        assert pair(merged) == [([0, 0, 1, 0], "from 0")] * 2


def whole_rows(n: int) -> torch.Tensor:
    return torch.arange(n * 6.0).view(n, 1, 2, 3)


def gathered(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    team, whole = Team.joined(), whole_rows(n)
    own = whole[team.share(n)].requires_grad_()
    rows = team.gather(own, n)
    rows.square().sum().backward()
    grad = torch.zeros_like(whole)
    grad[team.share(n)] = own.grad
    team.add_up([grad])
    return rows.detach(), grad


def merged() -> tuple[list[int], str]:
    team = Team.joined()
    return team.merge([team.rank, 0]), team.first(f"from {team.rank}")


class TestBatchNorm:
    """In the form that serves the CPU, where torch has no synchronised batch norm."""

    @pytest.mark.parametrize("momentum", [0.01, None])
    @pytest.mark.parametrize("n", [4, 3], ids=["even", "uneven"])
    def test_it_is_that_of_the_whole_batch(self, pair, n, momentum):
        expected = normalised(False, n, momentum)
        for found in pair(normalised, True, n, momentum):
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)

    @pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
    def test_what_comes_out_has_the_kind_of_what_goes_in(self, pair, kind):
        for out, grad in pair(kinds, kind):
            assert (out, grad) == (kind, kind)

    def test_a_checkpoint_fits_both_forms(self):
        plain, shared = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
        share_batch_norm(shared, CPU)
        assert type(shared[0]) is not nn.BatchNorm2d
        plain[0].running_mean.fill_(2)
        shared.load_state_dict(plain.state_dict())
        images = torch.rand(2, 3, 4, 4)
        assert torch.equal(plain.eval()(images), shared.eval()(images))  # no process group, since nothing is shared
        plain.load_state_dict(shared.state_dict())


def normalised(joined: bool, n: int, momentum: float | None) -> dict[str, torch.Tensor]:
    """What a batch norm makes of n images in two steps, and the gradients, each member computing its rows."""
    torch.manual_seed(0)
    images, pull = 50 + 3 * torch.randn(2, n, 3, 5, 4), torch.randn(n, 3, 5, 4)
    layer = nn.BatchNorm2d(3, momentum=momentum, eps=1e-3)
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    network, team = nn.Sequential(layer), member(joined)
    if joined:
        share_batch_norm(network, CPU)
    network(images[1][team.share(n)])
    own = images[0][team.share(n)].requires_grad_()
    out = network(own)
    (out * pull[team.share(n)]).sum().backward()
    of_weight, of_bias = layer.weight.grad, layer.bias.grad
    team.add_up([of_weight, of_bias])
    return {
        "out": team.gather(out.detach(), n),
        "gradient of images": team.gather(own.grad, n),
        "gradient of weight": of_weight,
        "gradient of bias": of_bias,
        **{name: value.float() for name, value in network.state_dict().items()},
    }


def kinds(kind: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    network = nn.Sequential(nn.BatchNorm2d(2))
    share_batch_norm(network, CPU)
    images = torch.rand(1, 2, 4, 4).to(kind).requires_grad_()
    out = network(images)
    out.sum().backward()
    return out.dtype, images.grad.dtype


def fitter(joined: bool, case: str, *, fixed: bool = False, **training: Any) -> _Fitter:
    """A training that has not begun; `fixed`: batch norm takes its running statistics and leaves them."""
    dataset = cells()
    made = _Fitter(
        tiny_trial(loss=CASES[case], **training),
        dataset,
        thirds(dataset),
        CPU,
        lambda name: None,
        lambda name, data: None,
        lambda row: None,
        member(joined),
    )
    if fixed:
        made.model.eval()
        made.model.train = lambda mode=True: made.model
    return made


def one_step(joined: bool, case: str, fixed: bool, batch_size: int) -> tuple[float, torch.Tensor]:
    """The loss of a step and the gradient of all weights."""
    made = fitter(joined, case, fixed=fixed, batch_size=batch_size)
    loss = made._train_step(0, 0.0).item()
    return loss, torch.cat([weight.grad.flatten() for weight in made.model.parameters()])


def some_steps(joined: bool, case: str, fixed: bool, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    made = fitter(joined, case, fixed=fixed)
    return [made._train_step(step, 1e-3).item() for step in range(steps)], made.model.state_dict()


@pytest.mark.parametrize("case", CASES)
class TestNumbers:
    @pytest.mark.parametrize("batch_size", [4, 3], ids=["even", "uneven"])
    @pytest.mark.parametrize("fixed", [True, False], ids=["statistics fixed", "statistics live"])
    def test_a_step_has_the_gradient_of_one_worker(self, pair, case, fixed, batch_size):
        loss, gradient = one_step(False, case, fixed, batch_size)
        both = pair(one_step, True, case, fixed, batch_size)
        for shared_loss, shared in both:
            assert shared_loss == pytest.approx(loss, rel=CLOSE)
            assert (shared - gradient).norm() < CLOSE_GRADIENT * gradient.norm()
        assert torch.equal(both[0][1], both[1][1])

    def test_steps_lead_to_the_weights_of_one_worker(self, pair, case):
        losses, weights = some_steps(False, case, True, 5)
        both = pair(some_steps, True, case, True, 5)
        for shared_losses, shared in both:
            assert shared_losses == pytest.approx(losses, rel=1e-5)
            # Adam divides by the gradient's size: of a weight that hardly matters it takes the rounding for the
            # direction, and steps by the rate (1e-3) whatever the gradient. So not all, but nearly all are close.
            apart = torch.cat([(shared[name] - weights[name]).abs().flatten() for name in weights])
            assert apart.max() <= 2 * 5 * 1e-3
            assert (apart < 1e-5).float().mean() > 0.99
        assert all(torch.equal(both[0][1][name], both[1][1][name]) for name in weights)

    def test_losses_stay_those_of_one_worker_with_live_statistics(self, pair, case):
        losses, _ = some_steps(False, case, False, 5)
        for shared, _ in pair(some_steps, True, case, False, 5):
            assert shared == pytest.approx(losses, rel=5e-5)


class Store(dict):
    def load(self, name: str) -> bytes | None:
        return self.get(name)

    def save(self, name: str, data: bytes) -> None:
        self[name] = data


def course(joined: bool, *, store: dict[str, bytes] | None = None, mixed: bool = False, **trial: Any) -> dict[str, Any]:
    """What comes of a whole training, with what this process was told and saved."""
    kept, told, until = Store(store or {}), [], trial.pop("until", None)
    dataset = mixed_cells() if mixed else cells()
    fitted = fit(
        tiny_trial(**trial),
        dataset,
        thirds(dataset),
        device=CPU,
        load=kept.load,
        save=kept.save,
        on_epoch=told.append,
        until=until,
        team=member(joined),
    )
    run = fitted.run
    return {
        "rows": [{k: row[k] for k in ("epoch", "train_loss", "val_loss", "val_dice")} for row in run.history],
        "lr": run.lr,
        "scales": run.term_scales,
        "range test": run.range_test,
        "diverged": run.diverged,
        "told": len(told),
        "store": dict(kept),
        "best": fitted.best_state,
    }


def mixed_cells() -> Pictures:
    """Validation images of two shapes, in turn: they are predicted in another order than they are named."""
    small, large = cells(), cells(height=56, width=48, seed=1)
    pairs = [(small, large)[k % 2] for k in range(18)]
    return Pictures([d.images[k % 12] for k, d in enumerate(pairs)], [d.truth[k % 12] for k, d in enumerate(pairs)])


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(found["rows"]) == len(expected["rows"])
    for ours, theirs in zip(found["rows"], expected["rows"], strict=True):
        for name in ("epoch", "train_loss", "val_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-5)
        assert ours["val_dice"] == pytest.approx(theirs["val_dice"], abs=2e-3)  # a pixel may change sides


@pytest.mark.slow
class TestCourse:
    @pytest.mark.parametrize("mixed", [False, True], ids=["one shape", "two shapes"])
    def test_a_training_has_one_workers_history_and_one_writer(self, pair, mixed):
        alone = course(False, epochs=3, mixed=mixed)
        first, second = pair(course, True, epochs=3, mixed=mixed)
        assert_alike(first, alone)
        assert first["rows"] == second["rows"]
        assert (first["told"], set(first["store"])) == (3, {"best", "last"})
        assert (second["told"], second["store"], second["best"]) == (0, {}, None)

    def test_re_estimated_statistics_are_those_of_one_worker(self, pair):
        still = {"epochs": 1, "lr": 1e-8}  # so that only the statistics move
        alone, (first, _) = course(False, **still)["best"], pair(course, True, **still)
        for name in (name for name in alone if "running" in name):
            assert (first["best"][name] - alone[name]).abs().max() <= 1e-5 * alone[name].abs().max(), name

    def test_it_repeats_to_the_bit(self, pair):
        one, again = (pair(course, True, epochs=2)[0] for _ in range(2))
        assert one["rows"] == again["rows"]
        assert all(torch.equal(one["best"][name], again["best"][name]) for name in one["best"])

    def test_a_range_test_finds_the_same_rate(self, pair):
        settings = {"epochs": 1, "lr": "range_test", "range_test": {"low": 1e-4, "high": 1.0, "steps": 10}}
        alone = course(False, **settings)
        first, second = pair(course, True, **settings)
        assert first["lr"] == second["lr"] == alone["lr"]
        n = len(alone["range test"]["loss"])
        assert first["range test"] == second["range test"]
        assert first["range test"]["loss"][: n // 2] == pytest.approx(alone["range test"]["loss"][: n // 2], rel=1e-3)

    def test_balanced_terms_get_the_same_weights(self, pair):
        loss = LossConfig(terms=(TermConfig(name="bce"), TermConfig(name="dice")), balance="gradient")
        alone = course(False, loss=loss, epochs=1)
        first, second = pair(course, True, loss=loss, epochs=1)
        assert first["scales"] == second["scales"] == pytest.approx(alone["scales"], rel=1e-5)

    def test_it_goes_on_to_the_bit_after_a_pause_from_what_the_first_one_kept(self, pair):
        straight, _ = pair(course, True, epochs=4)
        paused, other = pair(course, True, epochs=4, until=2)
        assert len(paused["rows"]) == len(other["rows"]) == 2
        resumed, _ = pair(course, True, epochs=4, store=paused["store"])
        assert resumed["rows"] == straight["rows"] and resumed["told"] == 2
        assert all(torch.equal(resumed["best"][name], straight["best"][name]) for name in straight["best"])

    def test_a_checkpoint_of_two_workers_goes_on_with_one_and_back(self, pair):
        alone = course(False, epochs=3)
        of_two, _ = pair(course, True, epochs=3, until=1)
        assert_alike(course(False, epochs=3, store=of_two["store"]), alone)
        of_one = course(False, epochs=3, until=1)
        assert_alike(pair(course, True, epochs=3, store=of_one["store"])[0], alone)

    def test_a_loss_that_is_no_number_ends_all(self, pair):
        first, second = pair(diverging)
        assert first == second == "the loss became nan at step 3 of 8 (epoch 2)"

    def test_a_logit_that_is_no_number_in_one_share_ends_all(self, pair):
        first, second = pair(ruined_share)
        assert first["diverged"] == second["diverged"]
        assert "the logits were no numbers after step 2 of 2" in first["diverged"]
        assert math.isnan(second["rows"][0]["val_loss"])

    def test_too_small_a_batch_is_an_error_at_once(self, pair):
        assert pair(too_small) == ["StudyError"] * 2


def diverging() -> str | None:
    calls = []

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return dice_loss(logits, target) * (math.nan if len(calls) >= 3 else 1)

    LOSSES["breaks"] = loss
    try:
        return course(True, loss="breaks", epochs=4, validate_every=4)["diverged"]
    finally:
        del LOSSES["breaks"]


def ruined_share() -> dict[str, Any]:
    """A training in which only the second worker's validation images give NaN."""
    from cellray.training import validation

    predict = validation.predict_logits

    def predict_ruined(*args: Any, **settings: Any) -> Any:
        for index, logits in predict(*args, **settings):
            yield index, logits * (math.nan if Team.joined().rank == 1 else 1)

    validation.predict_logits = predict_ruined
    try:
        return course(True, epochs=1)
    finally:
        validation.predict_logits = predict


def too_small() -> str:
    try:
        course(True, batch_size=1)
    except StudyError as error:
        return type(error).__name__
    return "no error"


class TestWhoFailed:
    def test_the_lowest_rank_with_an_error_of_its_own_gives_the_reason(self):
        echo, own = WorkerError("RuntimeError: gloo: closed", "", True), WorkerError("ValueError: bad", "", False)
        assert own_error({0: echo, 1: own}) is own
        assert own_error({1: own, 0: WorkerError("first", "", False)}).reason == "first"

    def test_the_end_of_a_process_is_no_error_of_the_trial(self):
        echo, own = WorkerError("RuntimeError: gloo: closed", "", True), WorkerError("ValueError: bad", "", False)
        assert own_error({0: echo}) is None
        assert own_error({0: own, 1: RuntimeError("the process died")}) is None


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import what the tests hand them
        with connect():
            yield


class Trained:
    """A tiny study's first trial, with two workers and a storage of its own."""

    def __init__(self, folder: Path, **training: Any) -> None:
        self.study = tiny_study(draw_images(folder / "images"), training=training)
        self.trial = self.study.trials()[0]
        self.ledger = Ledger(str(folder / "storage"), self.study.name)
        self.rows: list[dict[str, float]] = []

    def __call__(self, at_row: Any = lambda row: None, **how: Any) -> None:
        def report(row: dict[str, float]) -> None:
            self.rows.append(row)
            at_row(row)

        keys = Sets.open(self.study.data).keys(self.trial)
        run_with_workers(self.trial, keys, self.ledger, workers=2, cpus=1, gpus=0, on_epoch=report, **how)


def processes() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if "RayTrainWorker" in title(pid)]


@pytest.mark.slow
def test_a_pause_is_none_and_a_killed_worker_ends_an_attempt_and_the_last_ends_in_one_workers_record(
    ray_here, tmp_path
):
    run = Trained(tmp_path, steps=30, lr=1e-3, precision="float32")
    run(until=2)
    assert run.ledger.records() == [] and len(run.rows) == 2

    def kill_at(row: dict[str, float]) -> None:
        if row["epoch"] == 4:
            os.kill(max(processes()), signal.SIGKILL)

    from ray.train import WorkerGroupError

    with pytest.raises(WorkerGroupError):
        run(kill_at)
    assert run.ledger.records() == []
    n = len(run.rows)
    run()
    (record,) = run.ledger.records()
    assert (record.outcome, record.epochs, record.steps) == ("finished", 15, 30)
    assert record.provenance.device.endswith("1 thread, 2 workers")
    assert [row["epoch"] for row in run.rows[:n]] == list(range(1, n + 1))
    assert run.rows[n]["epoch"] > 4  # what had been kept was not trained again
    assert run.rows[-1]["epoch"] == 15
    assert processes() == []

    alone = Ledger(str(tmp_path / "alone"), run.study.name)
    expected = run_trial(run.trial, Sets.open(run.study.data), alone)
    assert (record.key, record.evaluation_key) == (expected.key, expected.evaluation_key)
    for name, tolerance in {"train_loss": 1e-4, "val_loss": 1e-4, "val_dice": 1e-2}.items():
        ours, theirs = (book.table(record.key, "history")[name].tolist() for book in (run.ledger, alone))
        assert ours == pytest.approx(theirs, rel=tolerance)


class FailingLedger(Ledger):
    """Fails in the second of two workers."""

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return FailingLedger, (self.storage, self.study)

    def record(self, key: str) -> TrialRecord | None:
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            raise ValueError("out of luck")
        return super().record(key)


class EndingLedger(Ledger):
    """Ends the process that judges, so many times, or can't be read there."""

    deaths = 0
    message = ""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return EndingLedger.with_fate, (self.storage, self.study, self.deaths, self.message)

    @classmethod
    def with_fate(cls, storage: str, study: str, deaths: int, message: str) -> EndingLedger:
        ledger = cls(storage, study)
        ledger.deaths, ledger.message = deaths, message
        return ledger

    def read(self, path: str) -> bytes:
        if path.startswith("predicted/") and path.endswith(".0.pt"):
            if self.message:
                raise StorageError(self.message)
            seen = Path(self.uri) / f"seen-{time.monotonic_ns()}"
            seen.touch()
            if len(list(seen.parent.glob("seen-*"))) <= self.deaths:
                os._exit(1)
        return super().read(path)


@pytest.mark.slow
def test_a_trial_whose_judging_process_dies_is_judged_again_and_given_up_in_the_end(ray_here, tmp_path, monkeypatch):
    monkeypatch.setattr(judging_module, "WORKER_DEATHS", 1)  # a process takes seconds to come
    study = tiny_study(draw_images(tmp_path / "images"))
    trial, sets = study.trials()[0], Sets.open(study.data)
    keys = sets.keys(trial)

    def judged(deaths: int, message: str = "") -> list[tuple[Trial, str | None]]:
        ledger = EndingLedger.with_fate(str(tmp_path / f"studies {deaths} {message}"), study.name, deaths, message)
        assert run_trial(trial, sets, ledger, may_wait=1) is None
        judging = Judging(ledger, study.resources)
        judging.begin(trial, keys)
        found = []
        while judging:
            found += list(judging.ended(60.0))
        assert [record.outcome for record in ledger.records()] == ["finished"] * (deaths == 1)
        return found

    assert judged(1) == [(trial, None)]
    ((given_up, reason),) = judged(2)
    assert given_up == trial and reason is not None and reason.startswith("given up after 2 attempts: ")
    with pytest.raises(StorageError, match=r"^the bucket is away$"):
        judged(0, "the bucket is away")


@pytest.mark.slow
def test_an_error_in_one_worker_ends_all_and_is_the_outcome(ray_here, tmp_path):
    run = Trained(tmp_path)
    run.ledger = FailingLedger(run.ledger.storage, run.study.name)
    run()
    (record,) = run.ledger.records()
    assert (record.outcome, record.reason) == ("failed", "ValueError: out of luck")
    assert b"in record" in run.ledger.read(f"trials/{record.key}/traceback.txt")
    assert run.rows == [] and processes() == []
