"""Learning rates chosen for each configuration: which are tried, on which seeds, and what is trained with them."""

from __future__ import annotations

import json
import random

import pandas as pd
import pytest
from tiny_study import tiny_study

from cellray.errors import StudyError
from cellray.ledger import Ledger
from cellray.observers import Observer
from cellray.record import TrialRecord
from cellray.results import known_study
from cellray.search import Agenda
from cellray.search.rates import attempts_at, best_rate, rates_to_try
from cellray.study import TuneConfig, read_study
from cellray.sweep import connect, run_sweep
from cellray.trial import Sets, home, run_trial

pytestmark = pytest.mark.usefixtures("own_cache")

LADDER = TuneConfig(rates=(1e-3, 3e-3, 1e-2))
BEST = {"Dice": 3e-3, "BCE": 1e-5, "Fast": 0.5}
"""By configuration: the rate at which the made-up score is highest."""


def tuned(images, **changes):
    listed = [
        {"label": "Dice", "loss": {"name": "dice"}},
        {"label": "BCE", "loss": {"name": "bce"}},
        {"label": "Given", "loss": {"name": "focal"}, "training": {"lr": 0.02}},
    ]
    training = {"lr": "tune", "steps": 7} | changes.pop("training", {})
    return tiny_study(images, **{"configurations": listed, "seeds": [0, 1000], "training": training} | changes)


class TestLadder:
    def test_a_best_rate_inside_ends_it(self):
        assert rates_to_try(LADDER, {}) == [1e-3, 3e-3, 1e-2]
        assert rates_to_try(LADDER, {1e-3: 0.5, 1e-2: 0.1}) == [1e-3, 3e-3, 1e-2]  # one is still missing
        assert rates_to_try(LADDER, {1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.1}) == [1e-3, 3e-3, 1e-2]

    def test_at_an_end_it_goes_on_by_the_last_step_two_rates_at_most(self):
        low = {1e-3: 0.6, 3e-3: 0.5, 1e-2: 0.1}
        assert rates_to_try(LADDER, low) == [3.3e-4, 1e-3, 3e-3, 1e-2]
        assert rates_to_try(LADDER, low | {3.3e-4: 0.6}) == [1.1e-4, 3.3e-4, 1e-3, 3e-3, 1e-2]  # of equals the lowest
        assert rates_to_try(LADDER, low | {3.3e-4: 0.6, 1.1e-4: 0.7}) == [1.1e-4, 3.3e-4, 1e-3, 3e-3, 1e-2]
        assert rates_to_try(LADDER, {1e-3: 0.1, 3e-3: 0.5, 1e-2: 0.6})[-1] == 3.3e-2

    def test_of_equals_the_lowest_is_taken(self):
        assert best_rate({1e-2: 0.5, 1e-3: 0.5, 3e-3: 0.4}) == 1e-3

    def test_tries_are_shorter_and_have_seeds_of_their_own(self, images):
        trial = tuned(images).trials()[0]
        tries = attempts_at(3e-3, trial, [0, 1000, 1002])
        assert [(t.seed, t.training.lr, t.training.steps) for t in tries] == [(1001, 3e-3, 4), (1003, 3e-3, 4)]
        by_epochs = tuned(images, training={"steps": None, "epochs": 9, "tune": {"share": 0.7, "seeds": 1}}).trials()[0]
        assert [(t.seed, t.training.epochs) for t in attempts_at(1.0, by_epochs, [])] == [(1000, 7)]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (
                "{lr: tuned}",
                "training.lr: must be a number or 'range_test' or 'tune', got 'tuned' (did you mean 'tune'?)",
            ),
            ("{lr: tune, tune: {rates: [0.1, 0.01]}}", "training.tune.rates: must rise from each to the next"),
            ("{lr: tune, tune: {rates: [0.1]}}", "training.tune.rates: "),
            ("{lr: tune, tune: {share: 0}}", "training.tune.share: must be greater than 0"),
        ],
    )
    def test_what_can_not_work_is_refused(self, given, words):
        text = "name: s\nquestion: q\ndata: {train: {name: t, synthetic: {}}}\nseeds: [0]\nloss: {name: dice}\n"
        with pytest.raises(StudyError) as caught:
            read_study(f"{text}configurations: [{{label: A}}]\ntraining: {{steps: 5, {given[1:-1]}}}\n", "s.yaml")
        assert words in str(caught.value)


class Sweep:
    """Runs an agenda with made-up results that depend on rate, loss and seed."""

    def __init__(self, study, storage, *, order=0):
        self.study, self.sets, self.ledger = study, Sets.open(study.data), Ledger(str(storage), study.name)
        self.order, self.ran = random.Random(order), []

    def __call__(self, *, die_after=None, n_workers=3):
        agenda, running = Agenda(self.study, self.sets, self.ledger), []
        while True:
            while len(running) < n_workers and (task := agenda.next()) is not None:
                running.append(task)
            if not running or die_after == 0:
                assert die_after == 0 or agenda.is_finished
                agenda.write()
                return agenda
            trial = running.pop(self.order.randrange(len(running))).trial
            self.run(trial)
            record = agenda.ended(trial)
            assert (record is None) == trial.tries_rate
            die_after = None if die_after is None else die_after - 1

    def run(self, trial):
        lr, best = trial.training.lr, BEST.get(trial.label, 0.02)
        self.ran.append((trial.label, trial.seed, lr, trial.tries_rate))
        key, evaluation_key = self.sets.keys(trial)
        dice = 1 / (1 + abs(lr - best) / best) + trial.seed * 1e-6
        record = TrialRecord(
            key=key, evaluation_key=evaluation_key, label=trial.label, seed=trial.seed, outcome="finished", epochs=2
        )
        history = pd.DataFrame({"epoch": [1, 2], "val_dice": [dice, dice / 2]})
        home(trial, self.ledger).write_record(record, {"history": history}, {})


class TestAgenda:
    @pytest.mark.slow
    def test_each_configuration_has_its_rate_and_all_its_seeds_the_same(self, images, tmp_path):
        sweep = Sweep(tuned(images), tmp_path)
        agenda = sweep()
        assert [(e.lr, e.state) for e in agenda.entries] == [(lr, "finished") for lr in (3e-3, 1.1e-4, None)]
        trained = {(label, seed, lr) for label, seed, lr, tries in sweep.ran if not tries}
        rates = {"Dice": 3e-3, "BCE": 1.1e-4, "Given": 0.02}
        assert trained == {(label, seed, rate) for label, rate in rates.items() for seed in (0, 1000)}
        tries = [(label, lr) for label, seed, lr, tries in sweep.ran if tries]
        assert {seed for _, seed, _, tries in sweep.ran if tries} == {1001, 1002}  # none of the study's
        assert len(tries) == 2 * 3 + 2 * 5  # 3 rates for Dice, 5 for BCE, 2 seeds each
        assert {planned.key for planned in agenda.plan} == {record.key for record in sweep.ledger.records()}
        assert sum("is trained at a learning rate of 0.003" in note for note in agenda.notes) == 1

    def test_a_chosen_rate_is_the_same_trial_as_a_given_one(self, images, tmp_path):
        agenda = Sweep(tuned(images), tmp_path)()
        given = tuned(images, training={"lr": 3e-3})
        sets = Sets.open(given.data)
        assert [p.key for p in agenda.entries[0].trials] == [
            sets.keys(t)[0] for t in given.trials() if t.label == "Dice"
        ]

    @pytest.mark.slow
    def test_whatever_ends_first_and_is_killed_it_comes_out_the_same(self, images, tmp_path):
        whole = Sweep(tuned(images), tmp_path / "whole")
        whole()
        log = whole.ledger.read("search.json")
        killed = Sweep(tuned(images), tmp_path / "killed", order=7)
        for _ in whole.ran:
            killed(die_after=1)
        killed()
        assert killed.ledger.read("search.json") == log
        assert killed.ledger.read("plan.json") == whole.ledger.read("plan.json")
        assert len(killed.ran) == len(set(killed.ran)) == len(whole.ran)

    def test_until_a_rate_is_chosen_its_trials_are_planned_and_missing(self, images, tmp_path):
        agenda = Sweep(tuned(images), tmp_path)(die_after=0)
        assert len(agenda.plan) == 6 and not any(planned.done for planned in agenda.plan)
        assert {entry.state for entry in agenda.entries} == {"running"}

    def test_a_chosen_rate_that_another_configuration_was_given_is_trained_once(self, images, tmp_path):
        listed = [
            {"label": "Dice", "loss": {"name": "dice"}},
            {"label": "Dice at 0.003", "loss": {"name": "dice"}, "training": {"lr": 3e-3}},
        ]
        sweep = Sweep(tuned(images, configurations=listed), tmp_path)
        agenda = sweep(n_workers=9)
        assert len([1 for *_, tries in sweep.ran if not tries]) == 2
        assert all(planned.done for planned in agenda.plan) and len(agenda.plan) == 4

    def test_only_what_is_chosen_is_tried(self, images, tmp_path):
        study = tuned(images)
        agenda = Agenda(study, Sets.open(study.data), Ledger(str(tmp_path), study.name), chosen=[("BCE", 0)])
        labels = set()
        while (task := agenda.next()) is not None:
            labels.add(task.trial.label)
        assert labels == {"BCE"}

    @pytest.mark.slow
    def test_in_a_search_each_suggestion_has_its_rate(self, images, tmp_path):
        space = {"loss": {"name": "tversky", "settings": {"fn_weight": {"uniform": [0.1, 0.9]}}}}
        study = tuned(images, configurations=[], search={"budget": 3, "space": space})
        sweep = Sweep(study, tmp_path)
        agenda = sweep()
        assert [(e.state, e.lr, len(e.trials)) for e in agenda.entries] == [("finished", 1e-2, 2)] * 3
        known = known_study(study, sweep.ledger.search())
        assert [c.training for c in known.configurations] == [{"lr": 1e-2}] * 3

    def test_readers_know_the_rates_of_the_settings_for_which_they_were_chosen(self, images, tmp_path):
        sweep = Sweep(tuned(images), tmp_path)
        agenda = sweep()
        known = known_study(sweep.study, sweep.ledger.search())
        assert [c.training.get("lr") for c in known.configurations] == [3e-3, 1.1e-4, 0.02]
        assert [p.key for p in agenda.plan] == [sweep.sets.keys(t)[0] for t in known.trials()]
        roles = {role.parameter: role for role in known.roles()}
        assert (roles["training.lr"].role, roles["training.lr"].value) == ("tuned", [3e-3, 1.1e-4, 0.02])
        other = tuned(images, training={"schedule": "constant"})
        assert known_study(other, sweep.ledger.search()).configurations == other.configurations
        tried = json.loads(sweep.ledger.read("search.json"))["configurations"][0]["rates"]
        assert [rate["lr"] for rate in tried] == [1e-3, 3e-3, 1e-2]
        assert tried[1]["dice"] == pytest.approx([1 + 1001e-6, 1 + 1002e-6])


def test_a_try_is_trained_but_sees_no_test_image_and_leaves_no_weights(images, tmp_path):
    study = tuned(images)
    sets, ledger = Sets.open(study.data), Ledger(str(tmp_path), study.name)
    attempt = attempts_at(3e-3, study.trials()[0], study.seeds)[0]
    record = run_trial(attempt, sets, ledger)
    assert record.outcome == "finished" and record.metrics == {} and record.steps == 4
    assert ledger.records() == [] and [r.key for r in ledger.within("rates").records()] == [record.key]
    assert home(attempt, ledger).load_checkpoint(record.key, "best") is None
    assert run_trial(attempt, sets, ledger) == record  # not done again


class Heard(Observer):
    """Remembers which trials it was told of, and the notes."""

    def __init__(self):
        self.trials, self.plans, self.notes, self.tries = set(), [], [], []

    def on_start(self, study, plan):
        self.plans.append([planned.key for planned in plan])

    on_plan = on_start

    def on_trial_start(self, trial):
        self.trials.add((trial.label, trial.seed, trial.training.lr))

    def on_epoch(self, trial, row):
        self.on_trial_start(trial)

    def on_note(self, sentence):
        self.notes.append(sentence)

    def on_tries(self, tries):
        self.tries.append(tuple(tries))


@pytest.mark.slow
def test_a_real_sweep_tells_of_the_rates_and_of_the_trials_with_them(images, tmp_path):
    listed = [{"label": "Dice", "loss": {"name": "dice"}}]
    study = tuned(images, configurations=listed, seeds=[0], training={"tune": {"seeds": 1}})
    sets, ledger, heard = Sets.open(study.data), Ledger(str(tmp_path), study.name), Heard()
    (record,) = run_sweep(study, sets, ledger, observers=[heard], cluster=connect)
    (configuration,) = ledger.search().configurations
    assert record.lr == configuration.lr in [rate.lr for rate in configuration.rates]
    assert heard.trials == {("Dice", 0, record.lr)}
    assert heard.plans[-1] == [record.key] != heard.plans[0]
    first, chosen = (note for note in heard.notes if "learning rate" in note)
    assert first == "3 shorter trainings choose learning rates first"
    assert chosen.startswith(f"Dice is trained at a learning rate of {record.lr:g} (validation Dice at ")
    n = heard.tries[-1][1]  # three, or more where the best was at an end
    assert heard.tries[0] == (0, 3) and [done for done, _ in heard.tries] == list(range(n + 1))
    again = Heard()
    assert run_sweep(study, sets, ledger, observers=[again]) == [record]  # without Ray: nothing is to do
    assert (again.notes, again.tries, again.plans) == ([], [], [[record.key]])
