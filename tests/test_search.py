"""Suggestions, early stopping and seeds where they decide, without Ray: trials are run here, or made up."""

from __future__ import annotations

import io
import itertools
import json
import random
import shutil

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from tiny_study import lasting, same, tiny_study

from cellray.errors import LedgerError, StudyError
from cellray.forecast import Further, further_trials
from cellray.ledger import Ledger
from cellray.record import TrialRecord
from cellray.results import known_study, known_trials
from cellray.search import Agenda
from cellray.search.journal import LedgerJournal
from cellray.search.rules import alpha_of, by_old_rule, goes_on, look_at, looks, rung_epochs
from cellray.statistics import find_best, look_ahead, moments
from cellray.study import StoppingConfig, read_study
from cellray.training import TrainingRun
from cellray.trial import Sets, run_trial

pytestmark = pytest.mark.usefixtures("own_cache")

SPACE = {
    "loss": {
        "choice": {
            "sum": {"terms": [{"name": "bce"}, {"name": "dice"}], "weights": {"simplex": 1}},
            "tversky": {"name": "tversky", "settings": {"fn_weight": {"uniform": [0.1, 0.9]}}},
        }
    }
}
DICE, HALF = {"label": "Dice", "loss": {"name": "dice"}}, {"label": "Half", "loss": {"terms": [
    {"name": "bce", "weight": 0.5}, {"name": "dice", "weight": 0.5}]}}  # fmt: skip


class Sweep:
    """Runs an agenda with made-up results: `score(trial)` in [0, 1], at any epoch; None is a collapse."""

    def __init__(self, study, storage, score, *, n_workers=2, rng=None):
        self.study, self.sets, self.ledger = study, Sets.open(study.data), Ledger(str(storage), study.name)
        self.score, self.n_workers, self.rng = score, n_workers, rng or random.Random(0)
        self.ran = []

    def agenda(self):
        return Agenda(self.study, self.sets, self.ledger)

    def __call__(self, *, die_after=None):
        """Run until nothing is left, or until so many tasks have ended; tasks end in any order."""
        agenda, running = self.agenda(), []
        while True:
            while len(running) < self.n_workers and (task := agenda.next()) is not None:
                running.append(task)
            if not running or die_after == 0:
                assert die_after == 0 or agenda.is_finished
                agenda.write()
                return agenda
            task = running.pop(self.rng.randrange(len(running)))
            self.run(task)
            agenda.ended(task.trial)
            die_after = None if die_after is None else die_after - 1

    def run(self, task):
        """What a worker does: a checkpoint where the trial pauses, a record where it ends."""
        trial, until = task
        key, evaluation_key = self.sets.keys(trial)
        self.ran.append((trial.label, trial.seed, until))
        score, n = self.score(trial), until or self.n_epochs(trial)
        row = {"val_dice": 0.0 if score is None else score, "peak_memory_mb": 1.0}
        history = [{"epoch": epoch, **row} for epoch in range(1, n + 1)]
        if until is not None and score is not None:
            self.ledger.save_checkpoint(key, "last", checkpoint(history))
            return
        sets = {name: {"f1_iou": score} for name in ("val", "test")}
        metrics = {} if score is None else dict.fromkeys(("own", "shared"), sets)
        record = TrialRecord(
            key=key, evaluation_key=evaluation_key, label=trial.label, seed=trial.seed, epochs=n,
            outcome="collapsed" if score is None else "finished", metrics=metrics,
        )  # fmt: skip
        self.ledger.write_record(record, {"history": pd.DataFrame(history)}, {})

    def n_epochs(self, trial):
        return trial.training.epochs

    @property
    def facts(self):
        return json.loads(self.ledger.read("search.json"))["configurations"]


def checkpoint(history):
    buffer = io.BytesIO()
    run = vars(TrainingRun(step=len(history), history=history))
    torch.save({"run": run}, buffer)
    return buffer.getvalue()


def searching(images, *, configurations=(DICE, HALF), seeds=(0, 5), **search):
    search = {"budget": 8, "space": SPACE} | search
    return tiny_study(
        images, configurations=list(configurations), seeds=list(seeds), search=search,
        training={"steps": None, "epochs": 9},
    )  # fmt: skip


def by_fn_weight(trial):
    """A made-up response: Tversky is best at fn_weight 0.7, sums are at 0.5."""
    loss = trial.loss
    return 0.9 - abs(loss.settings["fn_weight"] - 0.7) if loss.name == "tversky" else 0.5


class TestSearch:
    def test_listed_configurations_come_first_and_those_in_the_space_are_known(self, images, tmp_path):
        sweep = Sweep(searching(images), tmp_path, by_fn_weight)
        agenda = sweep()
        assert [e.label for e in agenda.entries] == ["Dice", "Half", *(f"#{n}" for n in range(2, 8))]
        facts = sweep.facts
        assert facts[0]["parameters"] == {}  # Dice alone has other settings than a sum of which it is all
        assert facts[1]["parameters"] == {
            "loss": "sum", "loss[sum].terms.0.weight": 0.5, "loss[sum].terms.1.weight": 0.5,
        }  # fmt: skip
        assert [f["source"] for f in facts] == ["given"] * 2 + ["suggested"] * 6
        assert all(f["state"] == "finished" and f["seeds"] == 2 for f in facts)
        assert len(sweep.ran) == len(set(sweep.ran)) == 16

    @pytest.mark.slow
    def test_a_search_is_the_same_whatever_ends_first_and_whatever_is_killed(self, images, tmp_path):
        straight = Sweep(searching(images), tmp_path / "a", by_fn_weight, n_workers=1)
        straight()
        for n_workers, seed in ((2, 1), (5, 2)):
            sweep = Sweep(
                searching(images), tmp_path / f"b{seed}", by_fn_weight, n_workers=n_workers, rng=random.Random(seed)
            )
            sweep()
            assert sweep.facts == straight.facts
        killed = Sweep(searching(images), tmp_path / "c", by_fn_weight)
        for deaths in (1, 3, 0, 2, 4, 1):
            killed(die_after=deaths)
        killed()
        assert killed.facts == straight.facts
        assert len(set(killed.ran)) == 16

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["tpe", "random", "gp"])
    def test_every_sampler_suggests_within_the_space(self, images, tmp_path, method):
        sweep = Sweep(searching(images, method=method, budget=12), tmp_path, by_fn_weight)
        sweep()
        suggested = [f["parameters"] for f in sweep.facts[2:]]
        assert len({json.dumps(p) for p in suggested}) == 10
        weights = [p["loss[tversky].settings.fn_weight"] for p in suggested if p["loss"] == "tversky"]
        sums = [p for p in suggested if p["loss"] == "sum"]
        assert all(0.1 <= w <= 0.9 for w in weights) and len(weights) + len(sums) == 10
        assert all(sum(v for k, v in p.items() if k.endswith("weight")) == pytest.approx(1) for p in sums)

    @pytest.mark.slow
    def test_two_metrics_go_to_nsga2(self, images, tmp_path):
        study = searching(images, method="nsga2", metrics=["f1_iou", "dice"], budget=10)
        sweep = Sweep(study, tmp_path, by_fn_weight)
        run = sweep.run

        def with_dice(task):
            run(task)
            key = sweep.sets.keys(task.trial)[0]
            record = sweep.ledger.record(key)
            record.metrics["own"]["val"]["dice"] = 1 - record.metrics["own"]["val"]["f1_iou"]
            sweep.ledger.write_record(record, {}, {})

        sweep.run = with_dice
        sweep()
        assert [sum(f["values"]) for f in sweep.facts] == pytest.approx([1.0] * 10)

    def test_a_configuration_is_judged_by_all_its_seeds_and_a_collapse_is_the_worst(self, images, tmp_path):
        sweep = Sweep(searching(images, budget=3), tmp_path, lambda trial: None if trial.seed == 5 else 0.8)
        sweep()
        assert [f["values"] for f in sweep.facts] == [[0.4]] * 3

    def test_a_suggestion_waits_for_what_it_may_know_and_for_nothing_else(self, images, tmp_path):
        sweep = Sweep(searching(images, at_once=2), tmp_path, by_fn_weight)
        agenda = sweep.agenda()
        assert [e.label for e in agenda.entries] == ["Dice", "Half"]
        tasks = [agenda.next() for _ in range(4)]
        assert agenda.next() is None and not agenda.is_finished
        for task in tasks[2:]:  # Half, which ends first
            sweep.run(task)
            agenda.ended(task.trial)
        assert agenda.next() is None
        for task in tasks[:2]:
            sweep.run(task)
            agenda.ended(task.trial)
        assert [e.label for e in agenda.entries] == ["Dice", "Half", "#2", "#3"]

    def test_a_larger_budget_goes_on_and_other_seeds_begin_anew(self, images, tmp_path):
        Sweep(searching(images, budget=4), tmp_path, by_fn_weight)()
        sweep = Sweep(searching(images, budget=6), tmp_path, by_fn_weight)
        sweep()
        assert [f["label"] for f in sweep.facts] == ["Dice", "Half", "#2", "#3", "#4", "#5"]
        assert {label for label, *_ in sweep.ran} == {"#4", "#5"}
        other = Sweep(searching(images, budget=4, seeds=(0, 5, 25)), tmp_path, by_fn_weight)
        other()
        assert {seed for label, seed, _ in other.ran if label in ("Dice", "Half")} == {25}

    def test_nothing_is_trained_twice_where_a_suggestion_repeats_another(self, images, tmp_path):
        space = {"loss": {"name": {"choice": ["dice", "mcc"]}}}
        sweep = Sweep(searching(images, space=space, budget=6, configurations=[DICE]), tmp_path, lambda trial: 0.5)
        agenda = sweep()
        assert {label for label, *_ in sweep.ran} <= {"Dice", *(f"#{n}" for n in range(1, 6))} and len(sweep.ran) == 4
        assert len(agenda.plan) == 4 and all(f["values"] == [0.5] for f in sweep.facts)
        assert sum(f["reason"].startswith("the same settings as ") for f in sweep.facts) == 4
        assert len(known_study(sweep.study, sweep.ledger.search()).configurations) == 2

    def test_a_damaged_journal_is_named_and_made_anew_once_it_is_removed(self, images, tmp_path):
        sweep = Sweep(searching(images, budget=5), tmp_path, by_fn_weight)
        sweep()
        facts, ran, journal = sweep.facts, [*sweep.ran], tmp_path / "tiny" / "search" / "journal"
        shutil.copytree(journal, tmp_path / "whole")
        for number, content in itertools.product((0, 3), (b"\xff\xfe", b"", b"[]", b"7", b"{}", b"[" * 100_000, None)):
            file = journal / f"{number:06}.json"
            file.unlink() if content is None else file.write_bytes(content)
            with pytest.raises(LedgerError, match=rf"{file} is no entry of a search \(.*or remove search/journal"):
                sweep.agenda()
            shutil.copy(tmp_path / "whole" / file.name, file)
        shutil.rmtree(journal)
        sweep()
        assert (sweep.facts, sweep.ran) == (facts, ran)

    def test_constraints_reach_the_sampler(self, images, tmp_path):
        study = searching(images, constraints={"f1_iou": {"at_least": 0.6}}, budget=4)
        sweep = Sweep(study, tmp_path, by_fn_weight)
        sweep()
        storage = optuna.storages.JournalStorage(LedgerJournal(sweep.ledger))
        stored = optuna.load_study(study_name=None, storage=storage)
        excess = {t.user_attrs["number"]: t.constraints["f1_iou"] for t in stored.trials}
        values = {f["number"]: f["values"][0] for f in sweep.facts}
        assert excess == pytest.approx({n: 0.6 - values[n] for n in excess}) and len(excess) == 3

    @pytest.mark.slow
    def test_tpe_learns(self, images, tmp_path):
        space = {"loss": {"name": "tversky", "settings": {"fn_weight": {"uniform": [0.0, 1.0]}}}}
        study = searching(images, space=space, budget=40, configurations=[], seeds=[0])
        sweep = Sweep(study, tmp_path, lambda trial: 1 - abs(trial.loss.settings["fn_weight"] - 0.7))
        sweep()
        values = [f["values"][0] for f in sweep.facts]
        assert sum(values[20:]) / 20 > sum(values[:10]) / 10 + 0.1  # at random their means are equal: 0.71 expected


STOPPING = {"rule": "asha", "at": [0.3, 0.6], "eta": 2, "grace": 2}


def stopping_study(images, n=6, *, seeds=(0, 5), **stopping):
    """Configurations whose fn_weight is their number in tenths."""
    listed = [{"label": f"C{i}", "loss": {"name": "tversky", "settings": {"fn_weight": i / 10}}} for i in range(n)]
    return tiny_study(
        images, configurations=listed, seeds=list(seeds), stopping=STOPPING | stopping,
        training={"steps": None, "epochs": 10},
    )  # fmt: skip


class TestRules:
    def test_asha_keeps_the_best_share_and_spares_the_first(self):
        rule = StoppingConfig(rule="asha", eta=3, grace=2)
        assert goes_on(rule, 0.1, []) and goes_on(rule, 0.1, [0.9])
        assert goes_on(rule, 0.5, [0.4, 0.3])  # the best of three
        assert not goes_on(rule, 0.35, [0.4, 0.3])
        assert goes_on(rule, 0.45, [0.1, 0.2, 0.5])  # second of four: ceil(4 / 3) = 2 go on
        assert goes_on(rule, 0.4, [0.4, 0.3])  # an equal isn't better

    def test_median_keeps_the_upper_half(self):
        rule = StoppingConfig(rule="median", grace=1)
        assert goes_on(rule, 0.5, [0.4, 0.5, 0.9]) and not goes_on(rule, 0.49, [0.4, 0.5, 0.9])

    def test_rungs_are_validations(self):
        rule = StoppingConfig(rule="asha", at=(0.1, 0.5, 0.99))
        assert rung_epochs(rule, 20, 1) == [2, 10]  # the third would be the end itself
        assert rung_epochs(rule, 20, 4) == [4, 12]
        assert rung_epochs(rule, 3, 5) == []

    def test_the_looks_share_five_per_cent_and_later_ones_have_more(self):
        shares = [alpha_of(i, 7) for i in range(7)]
        assert sum(shares) == pytest.approx(0.05) and shares == sorted(shares)
        assert (shares[0], shares[-1]) == pytest.approx((0.0041, 0.0102), abs=1e-4)
        assert alpha_of(0, 1) == pytest.approx(0.05)

    def test_looks_that_no_budget_reaches_have_no_share(self):
        assert looks(5, 12, None) == (5, 7, 10, 14, 20, 28, 40)
        assert looks(3, 2, 100) == (3, 5, 7, 10, 14, 20, 28, 40)
        assert looks(5, 12, 70) == (5, 7, 10)  # 10 more trials are five each for two
        assert looks(5, 12, 60) == (5,)

    def test_seeds_are_for_those_that_may_be_better_by_more_than_the_margin(self):
        values = scattered([0.90, 0.89, 0.88, 0.5], [0.02, 0.03, 0.001, 0.03], 5)
        look = look_at(values, [5] * 4, (5, 7, 10), lambda score: 0.01)
        assert look.said.take in look.needs and 3 not in look.needs and 2 <= len(look.needs) < 4
        assert (look.n_seeds, look.note) == (7, "")
        assert (
            look_at(values, [5] * 4, (5,), lambda score: 0.01).note == "after 5 seeds the budget allows no more of two"
        )
        assert look_at(values, [5] * 4, (5, 7), lambda score: 0.9).note == "decided within 0.9"

    def test_where_images_are_lacking_no_seeds_are_given(self):
        rng = np.random.default_rng(0)
        values = 0.8 + np.array([0.03, -0.03])[:, None, None] * rng.standard_normal((1, 1, 4))
        values = values + 0.001 * rng.standard_normal((2, 10, 4))
        planned, few, many = (5, 7, 10, 14), (values[:, :5], [5, 5]), (values, [10, 10])
        said = find_best(values, alpha=alpha_of(2, 4))
        left = look_ahead(said, moments(values), 0.005, new_images=True).of_images
        for margin, ends_with in ((left / 3, (5, 10)), (left / 1.25, (10,)), (2 * left, ())):
            for given in (few, many):
                look = look_at(*given, planned, lambda score, margin=margin: margin)
                n = given[1][0]
                lacking = look.note.startswith(
                    "test images are lacking, not seeds: any number of these would leave 0.0"
                )
                assert lacking == (n in ends_with) and bool(look.needs) == (look.said.loss > margin and not lacking)
        # what had been given before isn't taken back
        assert look_at(*few, planned, lambda score: left / 3, given_before=7).needs == (0, 1)


def scattered(means, sd, n_seeds, seed=3):
    """Scores over seeds without images; shape (k, n_seeds, 1)."""
    noise = np.random.default_rng(seed).standard_normal((len(means), n_seeds))
    return (np.array(means)[:, None] + np.array(sd)[:, None] * noise)[:, :, None]


class TestStopping:
    def test_a_configuration_is_ended_as_a_whole_and_ranked_with_nobody(self, images, tmp_path):
        value = {f"C{i}": v for i, v in enumerate((0.5, 0.6, 0.7, 0.2, 0.65, 0.55))}
        sweep = Sweep(stopping_study(images), tmp_path, lambda trial: value[trial.label])
        agenda = sweep()
        # eta 2, 2 spared. At epoch 3: C2 is best of 3; C3 4th of 4; C4 2nd of 5 (3 go on); C5 4th of 6 (3 go on).
        states = {e.label: e.state for e in agenda.entries}
        assert states == {
            "C0": "finished",
            "C1": "finished",
            "C2": "finished",
            "C3": "stopped",
            "C4": "finished",
            "C5": "stopped",
        }
        facts = {f["label"]: f for f in sweep.facts}
        assert (facts["C3"]["epoch"], facts["C3"]["epochs"]) == (3, 10)
        assert facts["C3"]["reason"] == (
            "stopped at epoch 3 of 10: validation Dice 0.200 over 2 seeds, not among the best 1/2 of the 3 "
            "configurations before it"
        )
        stopped = [r for r in sweep.ledger.records() if r.outcome == "stopped"]
        assert sorted((r.label, r.seed, r.epochs) for r in stopped) == [
            ("C3", 0, 3), ("C3", 5, 3), ("C5", 0, 3), ("C5", 5, 3)]  # fmt: skip
        assert ("C3", 0, 6) not in sweep.ran and ("C3", 0, None) not in sweep.ran
        assert {until for label, _, until in sweep.ran if label == "C4"} == {3, 6, None}

    @pytest.mark.slow
    def test_decisions_are_the_same_whatever_ends_first_and_whatever_is_killed(self, images, tmp_path):
        def score(trial):
            return None if (trial.label, trial.seed) == ("C4", 0) else trial.loss.settings["fn_weight"] * 7 % 1

        straight = Sweep(stopping_study(images, 9), tmp_path / "a", score, n_workers=1)
        straight()
        assert {f["state"] for f in straight.facts} == {"finished", "stopped"}
        for seed in (1, 2, 3):
            sweep = Sweep(stopping_study(images, 9), tmp_path / f"b{seed}", score, n_workers=4, rng=random.Random(seed))
            sweep(die_after=seed * 3)
            sweep(die_after=seed)
            sweep()
            assert sweep.facts == straight.facts

    def test_one_lucky_seed_saves_nobody(self, images, tmp_path):
        def score(trial):
            return {"C2": 1.0 if trial.seed == 0 else 0.0}.get(trial.label, 0.6)

        sweep = Sweep(stopping_study(images, 3), tmp_path, score)
        assert {e.label: e.state for e in sweep().entries}["C2"] == "stopped"

    @pytest.mark.slow
    def test_without_the_rule_stopped_trials_go_on(self, images, tmp_path):
        Sweep(stopping_study(images), tmp_path, lambda trial: trial.loss.settings["fn_weight"] * 7 % 1)()
        study = stopping_study(images).model_copy(update={"stopping": None})
        sweep = Sweep(study, tmp_path, lambda trial: 0.5)
        stopped = {(r.label, r.seed, None) for r in sweep.ledger.records() if r.outcome == "stopped"}
        sweep()
        assert stopped and set(sweep.ran) == stopped
        assert {r.outcome for r in sweep.ledger.records()} == {"finished"}

    @pytest.mark.slow
    def test_a_search_hears_of_those_that_were_stopped(self, images, tmp_path):
        study = searching(images, budget=12).model_copy(
            update={"stopping": StoppingConfig(rule="median", at=(0.5,), grace=3)}
        )
        sweep = Sweep(study, tmp_path, by_fn_weight)
        sweep()
        stored = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(LedgerJournal(sweep.ledger)))
        pruned = {t.user_attrs["number"] for t in stored.trials if t.state == optuna.trial.TrialState.PRUNED}
        assert pruned == {f["number"] for f in sweep.facts if f["state"] == "stopped"} and pruned

    @pytest.mark.slow
    def test_real_trials_pause_go_on_and_end_as_if_nothing_had_been(self, images, tmp_path):
        study = stopping_study(images, 4, seeds=(0,), eta=4)
        sets, ledger = Sets.open(study.data), Ledger(str(tmp_path / "swept"), study.name)
        agenda = Agenda(study, sets, ledger)
        while (task := agenda.next()) is not None:
            run_trial(task.trial, sets, ledger, until=task.until)
            agenda.ended(task.trial)
        alone = Ledger(str(tmp_path / "alone"), study.name)
        outcomes = [r.outcome for r in ledger.records()]
        assert sorted(outcomes)[:2] == ["finished", "finished"] and "stopped" in outcomes
        for trial in study.trials():
            record = ledger.record(sets.keys(trial)[0])
            if record.outcome == "finished":
                assert same(lasting(record), lasting(run_trial(trial, sets, alone)))


LISTED_FOUR = [
    {"label": label, "loss": {"name": "tversky", "settings": {"fn_weight": w}}}
    for label, w in (("A", 0.2), ("B", 0.4), ("C", 0.6), ("D", 0.8))
]
MEANS = {"A": (0.80, 0.02), "B": (0.80, 0.03), "C": (0.78, 0.02), "D": (0.30, 0.02)}


def drawn_score(trial):
    """Scattered about the configuration's mean, the same for the same trial."""
    mean, sd = MEANS[trial.label]
    return mean + sd * np.random.default_rng([trial.seed, ord(trial.label)]).standard_normal()


class TestDeciding:
    def deciding(self, images, storage, score=drawn_score, *, n_workers=2, rng=None, **decide):
        study = tiny_study(
            images, configurations=LISTED_FOUR, seeds=[5, 0, 25], decide={"within": 0.05} | decide,
            training={"steps": None, "epochs": 3},
        )  # fmt: skip
        return Sweep(study, storage, score, n_workers=n_workers, rng=rng)

    def test_seeds_go_where_they_decide(self, images, tmp_path):
        sweep = self.deciding(images, tmp_path, at_most="200 trials")
        agenda = sweep()
        counts = {e.label: len(e.trials) for e in agenda.entries}
        assert counts["D"] == 3 < max(counts.values()) and set(counts.values()) <= {3, 5, 7, 10, 14, 20, 28, 40}
        log = sweep.ledger.search()
        assert log.method == "decide" and log.note.startswith("decided within 0.05; ") and 0 < log.alpha < 0.05
        assert {e.state for e in agenda.entries} == {"finished"}
        assert agenda.entries[3].reason.startswith("not better than ")
        most = max(agenda.entries, key=lambda e: len(e.trials))
        assert [t.seed for t in most.trials][:7] == [5, 0, 25, 1, 2, 3, 4]  # those listed, and then the rest

    @pytest.mark.slow
    def test_decisions_are_the_same_whatever_ends_first_and_whatever_is_killed(self, images, tmp_path):
        straight = self.deciding(images, tmp_path / "a", at_most="200 trials", n_workers=1)
        straight()
        for seed in (1, 2):
            sweep = self.deciding(
                images, tmp_path / f"b{seed}", at_most="200 trials", n_workers=4, rng=random.Random(seed)
            )
            for deaths in (5, 9 + seed, 3):
                sweep(die_after=deaths)
            sweep()
            assert sweep.facts == straight.facts
            assert set(sweep.ran) == set(straight.ran)

    @pytest.mark.parametrize(("at_most", "note"), [("17 trials", "17 trials don't allow 6 more"), ("0.001 h", "allow"),
                                                   ("15 trials", "the budget allows no more")])  # fmt: skip
    def test_a_budget_ends_it(self, images, tmp_path, at_most, note):
        sweep = self.deciding(images, tmp_path, at_most=at_most)
        run = sweep.run

        def timed(task):
            run(task)
            key = sweep.sets.keys(task.trial)[0]
            record = sweep.ledger.record(key)
            timed = record.model_copy(update={"seconds": record.seconds.model_copy(update={"training": 0.29})})
            sweep.ledger.write_record(timed, {}, {})

        sweep.run = timed
        assert sum(len(e.trials) for e in sweep().entries) == 12
        assert note in sweep.ledger.search().note

    def test_its_plan_forecasts_by_its_own_rule(self, images, tmp_path):
        sweep = self.deciding(images, tmp_path, at_most="200 trials")

        def ahead():
            plan = sweep.sets.plan(known_trials(sweep.study, sweep.ledger.search()), sweep.ledger)
            return further_trials(sweep.study, plan, sweep.ledger)

        assert ahead() == Further(188)  # all 12 of the first have to be run in any case
        entries = sweep(die_after=12).entries
        more = [len(entry.trials) - 3 for entry in entries]
        assert set(more) == {0, 2}  # the first look has given two seeds to some
        found, n_open = ahead(), sum(n > 0 for n in more)
        assert found.most == 200 - 12 - sum(more)
        assert found.likely in {n_open * (n - 5) for n in (5, 7, 10, 14, 20, 28, 40)}
        sweep()
        assert ahead() == Further(0, 0)

    def test_what_had_ended_by_the_old_rule_on_images_is_not_opened_again(self, images, tmp_path):
        study = self.deciding(images, tmp_path, at_most="12 trials").study  # no seeds but the first
        self.deciding(images, tmp_path, at_most="12 trials")()
        ledger = Ledger(str(tmp_path), study.name)
        log = ledger.search()
        for within, n_trials in ((0.04, 17), (0.05, 12)):
            ledger.write_search(log.model_copy(update={"note": by_old_rule(within)}))
            agenda = Agenda(self.deciding(images, tmp_path, at_most="200 trials").study, Sets.open(study.data), ledger)
            assert (len(agenda.plan) > 12) == (n_trials > 12)

    def test_collapsed_runs_have_no_part_and_are_not_recommended(self, images, tmp_path):
        def score(trial):
            return None if (trial.label, trial.seed) == ("A", 0) else drawn_score(trial)

        sweep = self.deciding(images, tmp_path, score, at_most="60 trials")
        reasons = {e.label: e.reason for e in sweep().entries}
        assert not reasons["A"].startswith("recommended") and any(r.startswith("recommended") for r in reasons.values())

    def test_without_a_budget_every_configuration_gets_every_seed(self, images, tmp_path):
        sweep = self.deciding(images, tmp_path)
        assert [len(e.trials) for e in sweep().entries] == [3, 3, 3, 3]
        assert not sweep.study.adapts


def test_a_race_of_an_older_file_is_read():
    study = read_study(STUDY.format(rest=LISTED + "racing: {start: 3, budget: 8}"), "s.yaml")
    assert (study.decide.first, study.decide.at_most, study.decide.within) == (3, "8 trials", None)
    study = read_study(STUDY.format(rest=LISTED + "racing: {}"), "s.yaml")
    assert study.decide.at_most == "6 trials"


STUDY = """
name: s
question: q
data: {{train: {{name: t, synthetic: {{}}}}}}
training: {{steps: 5}}
seeds: [0, 1, 2]
{rest}
"""
LISTED = "configurations: [{label: A, loss: {name: dice}}, {label: B, loss: {name: bce}}]\n"


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("search: {budget: 3, space: {loss: {name: dice}}}", "search.space: there is no range in it"),
        ("search: {budget: 3, space: {loss: {name: {choice: [dice, dise]}}}}", "did you mean 'dice'"),
        (
            "search: {budget: 3, space: {loss: {name: tversky, settings: {fn_weight: {uniform: [-1, 1]}}}}}",
            "search.space.loss.settings.fn_weight: must be at least 0",
        ),
        ("search: {budget: 3, space: {training: {lr: {uniform: [0.1, 1]}}}}", "search.space: configuration"),
        (
            LISTED + "search: {budget: 1, space: {training: {lr: {uniform: [0.1, 1]}}}}",
            "smaller than the 2 configurations",
        ),
        (
            LISTED + "search: {budget: 9, metrics: [mae], space: {training: {lr: {uniform: [0.1, 1]}}}}",
            "no worst value",
        ),
        (LISTED + "search: {budget: 9, method: nsga2, space: {training: {lr: {uniform: [0.1, 1]}}}}", "two or more"),
        (LISTED + "decide: {first: 4}", "wants 4 seeds, but the study has only 3"),
        (LISTED + "decide: {at_most: 5 trials}", "3 seeds of 2 configurations are 6 trials"),
        (LISTED + "decide: {at_most: 6h}\nstopping: {rule: asha}", "doesn't go together with stopping"),
        (
            LISTED + "decide: {at_most: 6 days}",
            "must be a number of trials or hours, such as",
        ),
        (LISTED + "decide: {within: 0}", "decide.within"),
        (LISTED + "decide: {at_most: 9 trials}\nevaluation: {rank_by: medae}", "can't compare by 'medae'"),
        (LISTED + "stopping: {rule: asha, at: [0.5, 0.2]}", "must rise"),
        ("", "configurations: must have at least 1 entry, unless there is a search"),
    ],
)
def test_what_can_not_work_is_refused_in_its_line(rest, words):
    with pytest.raises(StudyError) as caught:
        read_study(STUDY.format(rest=rest), "s.yaml")
    assert words in str(caught.value) and str(caught.value).startswith("s.yaml:")


def test_a_study_that_adapts_is_written_out_and_read_again():
    rest = (
        "loss: {name: dice}\n"
        + LISTED
        + "search: {budget: 9, space: {training: {lr: {log_uniform: [0.001, 1]}}}}\nstopping: {rule: median}"
    )
    study = read_study(STUDY.format(rest=rest), "s.yaml")
    assert read_study(study.dump_yaml(), "again.yaml") == study
    assert ("training.lr", "compared", ["0.001 to 1 (log)"]) in [tuple(role) for role in study.roles()]
