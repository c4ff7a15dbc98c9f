"""What a study will cost, whether it fits, and what it can show; feasibility against a cluster."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import run_here
from pydantic import ValidationError
from scipy.stats import t as student
from tiny_study import draw_images, tiny_study

from cellray.cli.plan import print_further
from cellray.device import has_gpu
from cellray.errors import StudyError
from cellray.forecast import Further, Machine, at_once, costs, forecast, memory_trouble, probe, this_machine, work
from cellray.forecast.child import _largest_batch, _some, megapixels
from cellray.forecast.course import Span, makespan
from cellray.forecast.effect import TYPICAL_SD, n_units, smallest_effect
from cellray.forecast.probe import Job, run_probes
from cellray.forecast.room import most_in_memory
from cellray.ledger import Ledger
from cellray.places import WorkerGroup, n_places, shortest_change
from cellray.record import TrialRecord
from cellray.results import Results, Sample
from cellray.study import EvaluationConfig, ResourcesConfig
from cellray.sweep import check_feasible
from cellray.trial import Sets, new_network

LAPTOP = Machine(cpus=2, gpus=0, memory_mb=8192, gpu_memory_mb=0)
SERVER = Machine(cpus=32, gpus=4, memory_mb=262144, gpu_memory_mb=40960)


def resources(**settings):
    return ResourcesConfig.model_validate(settings)


class TestResources:
    @pytest.mark.parametrize(
        ("settings", "n_workers"),
        [
            ({}, 1),
            ({"workers": 3}, 3),
            ({"gpus": 0.5}, 1),
            ({"gpus": 1}, 1),
            ({"gpus": 4}, 4),
            ({"gpus": 4, "workers": 2}, 2),
            ({"gpus": 2, "workers": 1}, 1),
        ],
    )
    def test_there_is_one_worker_for_each_whole_gpu_unless_the_study_says(self, settings, n_workers):
        assert resources(**settings).n_workers == n_workers

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"gpus": 1.5}, "gpus: above 1, a trial needs whole GPUs, got 1.5: take 2, or at most 1"),
            ({"gpus": 3, "workers": 2}, "gpus: 3 can't be shared out evenly to 2 workers: take 2, or 0"),
            ({"gpus": 0.5, "workers": 2}, "gpus: 0.5 can't be shared out evenly to 2 workers"),
            ({"workers": 0}, "workers"),
            ({"checkpoints_gb": 0}, "checkpoints_gb"),
        ],
    )
    def test_what_can_not_be_shared_out_is_refused(self, settings, words):
        with pytest.raises(ValidationError, match=words.replace("(", r"\(")):
            resources(**settings)


class TestRoom:
    @pytest.mark.parametrize(
        ("settings", "n", "by"),
        [
            ({"cpus": 1}, 32, "CPUs"),
            ({"cpus": 3}, 10, "CPUs"),
            ({"cpus": 4, "workers": 2}, 4, "CPUs"),
            ({"gpus": 1}, 4, "GPUs"),
            ({"gpus": 2}, 2, "GPUs"),
            ({"gpus": 0.5}, 8, "GPUs"),
            ({"gpus": 0.6}, 4, "GPUs"),  # 0.6 + 0.6 don't fit on one
            ({"gpus": 1 / 3}, 12, "GPUs"),
            ({"gpus": 1, "max_concurrent": 3}, 3, "max_concurrent"),
            ({"cpus": 64}, 0, "CPUs"),
            ({"gpus": 8}, 0, "GPUs"),
        ],
    )
    def test_at_once_goes_by_what_is_scarcest(self, settings, n, by):
        assert at_once(resources(**settings), SERVER) == (n, by)

    def test_the_option_goes_before_the_study(self):
        assert at_once(resources(max_concurrent=3), SERVER, limit=2) == (2, "max_concurrent")

    def test_memory_of_the_machine_holds_nine_tenths_of_itself(self):
        # 0.9 * 8192 MB = 7372.8 MB
        assert most_in_memory(1000, resources(), LAPTOP) == 7
        assert most_in_memory(1000, resources(workers=2), LAPTOP) == 3
        assert memory_trouble(7, 1000, resources(), LAPTOP) is None
        assert memory_trouble(8, 1024, resources(), LAPTOP) == (
            "memory: each trial takes about 1.0 GiB, and the machine has 8.0 GiB, so 7 of 8 fit at once: "
            "set resources.max_concurrent to 7"
        )
        assert memory_trouble(99, 0, resources(), replace(LAPTOP, memory_mb=math.inf)) is None

    def test_memory_of_a_gpu_holds_tensors_and_contexts(self):
        # 0.9 * 40960 = 36864 MB; each process takes 500 MB besides
        assert most_in_memory(11788, resources(gpus=0.25), SERVER) == 4 * 3
        assert most_in_memory(11789, resources(gpus=0.25), SERVER) == 4 * 2
        assert most_in_memory(36364, resources(gpus=2), SERVER) == 2
        words = memory_trouble(16, 15860, resources(gpus=0.25), SERVER)
        assert words is not None and words.endswith("so 8 of 16 fit at once: set resources.gpus to 0.5")
        words = memory_trouble(4, 40000, resources(gpus=1), SERVER)
        assert words is not None and "not even one fits: set training.batch_size or training.crop_px lower" in words

    def test_this_machine_has_a_processor_and_memory(self):
        machine = this_machine()
        assert machine.cpus >= 1 and machine.memory_mb > 100


class TestFeasibility:
    CLUSTER = ({"CPU": 16.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0})

    @pytest.mark.parametrize(
        ("settings", "places"),
        [
            ({"cpus": 5}, 3),
            ({"cpus": 17}, 0),
            ({"gpus": 0.5}, 6),
            ({"gpus": 0.6}, 3),
            ({"gpus": 1}, 3),
            ({"gpus": 2, "workers": 1}, 1),
            ({"gpus": 3, "cpus": 4}, 2),
        ],
    )
    def test_places_are_counted_node_by_node(self, settings, places):
        assert n_places(resources(**settings), self.CLUSTER) == places

    @pytest.mark.parametrize(
        ("settings", "nodes", "change"),
        [
            ({"gpus": 2}, [{"CPU": 4, "GPU": 1}], {"gpus": 1}),
            ({"gpus": 0.5}, [{"CPU": 4}], {"gpus": 0}),
            ({"cpus": 1000}, [{"CPU": 2}], {"cpus": 2}),
            ({"cpus": 8, "gpus": 1}, [{"CPU": 16}, {"CPU": 4, "GPU": 1}], {"cpus": 4}),
            ({"workers": 4}, [{"CPU": 1}, {"CPU": 2}], {"workers": 3}),
            ({"workers": 2, "cpus": 3}, [{"CPU": 5}], {"cpus": 2}),
            ({"gpus": 4, "workers": 2}, [{"CPU": 1, "GPU": 1}] * 3, {"gpus": 2}),
            ({"gpus": 2, "cpus": 8}, [{"CPU": 4, "GPU": 1}], {"gpus": 1, "cpus": 4}),
            ({}, [], None),
        ],
    )
    def test_the_change_is_the_shortest(self, settings, nodes, change):
        assert shortest_change(resources(**settings), nodes) == change

    def test_the_error_names_it(self, monkeypatch):
        import ray

        nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}, {"Alive": False, "Resources": {"GPU": 8.0}}]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        monkeypatch.setattr("cellray.sweep.capacity._ask_autoscaler", lambda bundles, nodes: None)

        def check(**settings):
            check_feasible(resources(**settings))

        check(gpus=1)
        check(gpus=0.5, cpus=8)
        with pytest.raises(StudyError, match=r"9 CPUs \(largest node: 8\); set resources.cpus to 8"):
            check(cpus=9)
        with pytest.raises(StudyError, match=r"2 GPUs in 2 equal workers.*room for 1; set resources\.gpus to 1"):
            check(gpus=2)
        nodes[0]["Resources"] = {"CPU": 0.5}
        with pytest.raises(StudyError, match="no change of the study helps: add nodes"):
            check()


@pytest.fixture
def planned(images, tmp_path, monkeypatch):
    """A function that opens a study on the images: study, sets, plan and ledger."""
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))

    def plan(**changes):
        study = tiny_study(images, **changes)
        sets, ledger = Sets.open(study.data), Ledger(str(tmp_path / "studies"), study.name)
        return study, sets, sets.plan(study.trials(), ledger), ledger

    return plan


TRAINING = {"step_s": 0.5, "forward_s": 0.1, "validation_s": 100.0, "peak_mb": 600.0}
JUDGING = {"predict_s": 50.0, "search_s": 200.0, "judge_s": 30.0, "peak_mb": 700.0}
MPX = 64 * 64 / 1e6
# 8 images, 2 of them validation, 3 test; 6 steps of 3 crops: 3 epochs, each validated with 2 batches for batch norm
VALIDATION_S = 2 * 0.1 + 2 * MPX * 100
TRAINING_S = 6 * 0.5 + 3 * VALIDATION_S
JUDGING_S = 5 * MPX * 50 + 2 * MPX * 200 + 3 * MPX * 30


@pytest.fixture
def probes(monkeypatch):
    """Probes that are told, not made; returns the jobs asked for."""
    asked = []

    def answer(jobs, sets, resources, *, n_at_once, progress):
        asked.extend(jobs)
        return [dict(TRAINING if job.what == "training" else JUDGING) for job in jobs]

    monkeypatch.setattr(costs, "run_probes", answer)
    return asked


def stored(planned, **changes):
    """A trial with a record of 100 s of training and 20 s of evaluation, 130 s by the clock."""
    record = {
        "key": planned.key,
        "evaluation_key": planned.evaluation_key,
        "label": planned.label,
        "seed": planned.seed,
        "outcome": "finished",
        "seconds": {"training": 100.0, "evaluation": 20.0},
        "epochs": 4,
        "peak_memory_mb": 900.0,
        "provenance": {
            "device": costs.describe(costs.pick_device(0), 1),
            "started": "2026-01-01T00:00:00+00:00",
            "ended": "2026-01-01T00:02:10+00:00",
        },
    }
    return replace(planned, record=TrialRecord.model_validate(record | changes))


class TestForecast:
    def test_a_trials_time_is_what_it_does_times_what_that_takes(self, planned, probes):
        cost = forecast(*planned(), machine=LAPTOP)
        assert [(kind.labels, kind.loss, kind.n_todo) for kind in cost.kinds] == [
            (("Dice",), "dice", 1),
            (("BCE",), "bce", 1),
        ]
        for kind in cost.kinds:
            assert kind.training_s == pytest.approx(TRAINING_S)
            assert kind.judging_s == pytest.approx(JUDGING_S)
            assert kind.epoch_s == pytest.approx(2 * 0.5 + VALIDATION_S)
            assert kind.peak_mb == 700 and kind.source == "probe"
        trial_s = TRAINING_S + JUDGING_S
        assert cost.trial_s == pytest.approx(trial_s)
        assert (cost.concurrent, cost.limited_by) == (2, "CPUs")
        ends = costs.START_S + costs.REPORT_S + 2 * costs.REPORT_TRIAL_S
        assert cost.total_s == pytest.approx(ends + trial_s + costs.OVERHEAD_S)
        assert cost.cpu_hours == pytest.approx(2 * trial_s / 3600) and cost.gpu_hours == 0

    def test_the_range_test_is_part_of_training(self, planned, probes):
        tested = {"lr": "range_test", "range_test": {"low": 1e-4, "high": 1, "steps": 40}}
        kind = forecast(*planned(training=tested), machine=LAPTOP).kinds[0]
        assert kind.training_s == pytest.approx(TRAINING_S + 40 * work.RANGE_TEST_SHARE * 0.5)

    def test_trainings_that_choose_learning_rates_come_before(self, planned, probes):
        plain = forecast(*planned(), machine=LAPTOP)
        tuned = forecast(*planned(training={"lr": "tune", "tune": {"seeds": 1, "share": 0.25}}), machine=LAPTOP)
        assert (plain.n_tries, plain.tries_s) == (0, 0)
        assert tuned.n_tries == 2 * 3 and tuned.n_todo == plain.n_todo  # two configurations, three rates
        assert tuned.tries_s == pytest.approx(6 * 0.25 * TRAINING_S)
        assert tuned.trial_s == pytest.approx(plain.trial_s)
        each = 0.25 * TRAINING_S + costs.OVERHEAD_S  # two at a time
        assert tuned.total_s == pytest.approx(plain.total_s + 3 * each)
        assert tuned.cpu_hours == pytest.approx(plain.cpu_hours + tuned.tries_s / 3600)
        tunes = planned(training={"lr": "tune", "tune": {"seeds": 1, "share": 0.25}})
        assert forecast(*tunes, machine=LAPTOP, n_more=8).n_tries == 6  # further seeds have the rate that was chosen

    def test_one_probe_for_losses_that_differ_in_numbers_only_and_one_for_judging(self, planned, probes):
        def combined(label, *weights):
            terms = [{"name": n, "weight": w} for n, w in zip(("bce", "dice"), weights, strict=True)]
            return {"label": label, "loss": {"terms": terms}}

        contenders = [
            {"label": "low", "loss": {"name": "bce", "settings": {"cell_weight": 50.0}}},
            {"label": "high", "loss": {"name": "bce", "settings": {"cell_weight": 200.0}}},
            combined("even", 0.5, 0.5),
            combined("dice", 0.1, 0.9),
            combined("alone", 1.0, 0.0),
            {"label": "wide", "loss": {"name": "dice"}, "model": {"base_features": 4}},
        ]
        cost = forecast(*planned(configurations=contenders, seeds=[0, 1]), machine=LAPTOP)
        labels = [kind.labels for kind in cost.kinds]
        assert labels == [("low", "high", "alone"), ("even", "dice"), ("wide",)]
        assert [kind.n_todo for kind in cost.kinds] == [6, 4, 2]
        assert [job.what for job in probes] == ["training"] * 3 + ["judging"] * 2

    def test_records_of_the_same_kind_from_such_a_machine_count_more_than_a_probe(self, planned, probes):
        study, sets, plan, ledger = planned(seeds=[0, 1])
        elsewhere = {"provenance": stored(plan[1]).record.provenance.model_dump() | {"device": "cuda: another"}}
        plan[:2] = [stored(plan[0]), stored(plan[1], **elsewhere)]
        cost = forecast(study, sets, plan, ledger, machine=LAPTOP)
        dice, bce = cost.kinds
        assert (dice.training_s, dice.judging_s, dice.epoch_s, dice.step_s) == (110, 20, 25, 12.5)
        assert (dice.peak_mb, dice.source, dice.n_todo) == (900, "1 record", 1)
        assert bce.source == "probe" and bce.training_s == pytest.approx(TRAINING_S)
        assert cost.n_todo == 2

    def test_a_trial_with_weights_is_only_judged_and_a_stopped_one_could_go_on(self, planned, probes):
        study, sets, plan, ledger = planned()
        plan = [stored(plan[0], evaluation_key="before"), stored(plan[1], outcome="stopped")]
        cost = forecast(study, sets, plan, ledger, machine=replace(LAPTOP, cpus=1))
        ends = costs.START_S + costs.REPORT_S + 2 * (costs.REPORT_TRIAL_S + costs.OVERHEAD_S)
        assert cost.n_todo == 2
        assert cost.total_s == pytest.approx(ends + 20 + TRAINING_S + JUDGING_S)

    def test_what_several_workers_give_up_is_not_counted_while_a_trial_is_judged(self, planned, probes):
        """Two workers and one processor beside: the first trial is judged while the second one is trained."""
        cost = forecast(*planned(resources={"workers": 2}), machine=replace(LAPTOP, cpus=3))
        predicted, judged = 5 * MPX * 50, 2 * MPX * 200 + 3 * MPX * 30
        held = costs.OVERHEAD_S + TRAINING_S + predicted
        assert cost.concurrent == 1 and cost.trial_s == pytest.approx(TRAINING_S + JUDGING_S)
        ends = costs.START_S + costs.REPORT_S + 2 * costs.REPORT_TRIAL_S
        assert cost.total_s == pytest.approx(ends + 2 * held + judged)
        assert cost.cpu_hours == pytest.approx(2 * (2 * (TRAINING_S + predicted) + judged) / 3600)
        kept = forecast(*planned(resources={"workers": 2}), machine=LAPTOP)
        assert kept.total_s == pytest.approx(ends + 2 * (held + judged))
        assert kept.cpu_hours == pytest.approx(2 * 2 * (TRAINING_S + JUDGING_S) / 3600)

    def test_nothing_to_do_costs_nothing(self, planned, probes):
        study, sets, plan, ledger = planned()
        cost = forecast(study, sets, [stored(p) for p in plan], ledger, machine=LAPTOP)
        assert (cost.n_todo, cost.total_s, cost.trial_s, cost.cpu_hours, probes) == (0, 0, 0, 0, [])

    def test_suggestions_to_come_count_as_the_mean_of_their_examples(self, planned, probes):
        study, sets, _, ledger = planned(resources={"cpus": 2})
        corner = tiny_study(
            study.data.train.path,
            configurations=[
                {"label": "corner", "loss": {"terms": [{"name": "bce", "weight": 1}, {"name": "dice", "weight": 0}]}}
            ],
        ).trials()
        cost = forecast(study, sets, [], ledger, machine=LAPTOP, n_more=3, examples=corner)
        assert [job.what for job in probes] == ["training", "judging"]
        assert [term.weight for term in probes[0].trial.loss.terms] == [1, 1]
        assert cost.n_todo == 3 and cost.trial_s == pytest.approx(TRAINING_S + JUDGING_S)
        ends = costs.START_S + costs.REPORT_S + 3 * (costs.REPORT_TRIAL_S + costs.OVERHEAD_S)
        assert cost.total_s == pytest.approx(ends + 3 * cost.trial_s)
        assert cost.cpu_hours == pytest.approx(2 * 3 * cost.trial_s / 3600)
        with pytest.raises(ValueError, match="neither a plan nor an example"):
            forecast(study, sets, [], ledger, machine=LAPTOP, n_more=3)

    def test_too_little_memory_limits_and_is_said(self, planned, probes):
        cost = forecast(*planned(), machine=replace(LAPTOP, memory_mb=1000))
        assert (cost.concurrent, cost.limited_by) == (1, "memory")
        assert any("set resources.max_concurrent to 1" in warning for warning in cost.warnings)

    @pytest.mark.slow
    def test_what_doesnt_fit_here_is_planned_without_times(self, planned, probes):
        for settings, need in (({"cpus": 3}, "3 CPUs and 0 GPUs"), ({"gpus": 1}, "1 CPUs and 1 GPUs")):
            cost = forecast(*planned(resources=settings), machine=LAPTOP)
            assert any(f"a trial needs {need}, and it has 2 and 0" in warning for warning in cost.warnings)
            assert (cost.n_todo, cost.concurrent, cost.total_s, cost.trial_s, cost.gpu_hours) == (
                2,
                0,
                None,
                None,
                None,
            )
            assert "--rate" in cost.not_measured and cost.peak_mb > 0 and cost.disk_mb > 0 and cost.effect is not None
        assert probes == []

    def test_auto_takes_a_gpu_where_there_is_one(self, planned, probes):
        study, sets, plan, ledger = planned(resources={"gpus": "auto"})
        assert forecast(study, sets, plan, ledger, machine=LAPTOP).gpus == 0
        nodes = [WorkerGroup(name="nodes", nodes=3, CPU=8, GPU=4)]
        cost = forecast(study, sets, plan, ledger, machine=LAPTOP, groups=nodes, n_more=20, rate=10)
        assert (cost.gpus, cost.concurrent, cost.limited_by) == (1, 12, "nodes")

    def test_a_rate_gives_times_for_a_cluster_that_isnt_here(self, planned, probes):
        nodes = [WorkerGroup(name="nodes", nodes=1, CPU=8, GPU=1)]
        how = {"machine": LAPTOP, "groups": nodes}
        cost = forecast(*planned(resources={"gpus": 1}), **how, rate=2.0)
        # 6 steps of 3 crops of 32 px; a forward pass is a third: 3 validations of 2 batches and 2 images, 5 at the end
        step = 3 * 32**2 / 1e6
        trained = 6 * step + 3 * (2 * step + 2 * MPX) / 3
        trial_s = (trained + (2 + 3) * MPX / 3) / 2.0
        assert cost.trial_s == pytest.approx(trial_s) and cost.gpu_hours == pytest.approx(2 * trial_s / 3600)
        ends = costs.START_S + costs.REPORT_S + 2 * (costs.REPORT_TRIAL_S + costs.OVERHEAD_S)
        assert cost.total_s == pytest.approx(ends + 2 * trial_s) and cost.not_measured == "" and probes == []
        with pytest.raises(StudyError, match=r"no trial fits: it needs 2 GPUs .*set resources\.gpus to 1"):
            forecast(*planned(resources={"gpus": 2, "workers": 1}), **how, rate=2.0)

    def test_a_long_probe_on_cpus_has_to_be_asked_for(self, planned, probes, monkeypatch):
        monkeypatch.setattr(costs, "LONG_PROBE_S", 1e-9)
        cost = forecast(*planned(), machine=LAPTOP)
        assert cost.not_measured.startswith("timing takes up to 1 min on its CPUs (--measure") and probes == []
        assert (cost.concurrent, cost.total_s) == (2, None)
        assert forecast(*planned(), machine=LAPTOP, measure=True).total_s is not None

    def test_memory_is_what_training_keeps(self, planned):
        """Against the tensors that a real step keeps for the way back."""
        trial = planned(training={"batch_size": 2, "crop_px": 64})[2][0].trial
        network = new_network(trial, "cpu")
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        holding = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (holding.append(t), keep(t))[1], lambda t: t):
            network(torch.rand(2, 3, 64, 64))
        weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        activations = sum(n for place, n in kept.items() if place not in weights)
        n_weights = sum(p.numel() for p in network.parameters())
        expected = (activations * 1.1 + 4 * 4 * n_weights) / 2**20
        assert work.memory_mb(trial, 1, True) == pytest.approx(expected, rel=0.02)
        assert work.memory_mb(trial, 1, False) - work.memory_mb(trial, 1, True) == work.LIBRARIES_MB
        assert work.memory_mb(trial, 2, True) < 0.7 * expected

    def test_checkpoints_are_counted_against_the_quota(self, planned, probes):
        study, sets, plan, ledger = planned(resources={"checkpoints_gb": 1e-6})
        n = sum(p.numel() for p in new_network(plan[0].trial, "meta").parameters())
        cost = forecast(study, sets, plan, ledger, machine=LAPTOP)
        # the best weights of both, and of both that run: weights and two moments
        assert cost.checkpoints_mb * 2**20 == pytest.approx(4 * n * (2 + 2 * 3))
        assert cost.quota_mb is not None and cost.quota_mb * 2**20 == pytest.approx(1000)
        least = math.ceil(2 * 4 * n / 1e8) / 10
        assert any(f"set resources.checkpoints_gb to {least:g} or more" in warning for warning in cost.warnings)
        roomy = forecast(*planned(resources={"checkpoints_gb": 1}), machine=LAPTOP)
        assert not any("checkpoints" in warning for warning in roomy.warnings)

    @pytest.mark.parametrize(
        ("times", "n", "seconds"), [([], 2, 0), ([3, 1, 1, 1], 2, 3), ([1, 1, 3], 2, 4), ([2, 2, 2], 1, 6)]
    )
    def test_trials_start_in_their_order_as_places_become_free(self, times, n, seconds):
        assert makespan([Span(time) for time in times], n) == seconds

    @pytest.mark.parametrize(
        ("spans", "n", "n_beside", "seconds"),
        [
            ([(3, 2), (3, 2)], 1, 0, 10),  # it keeps its place while it is judged
            ([(3, 2), (3, 2)], 1, 1, 8),  # the second one trains from 3 to 6
            ([(1, 4), (1, 4)], 1, 1, 9),  # the second one waits until 5 to be judged
            ([(1, 4), (1, 4)], 1, 2, 6),
            ([(5, 0), (0, 3)], 2, 1, 5),
        ],
    )
    def test_trials_are_judged_beside_the_next_ones(self, spans, n, n_beside, seconds):
        assert makespan([Span(*span) for span in spans], n, n_beside) == seconds
        assert makespan([Span(*span) for span in spans], n, n_beside, 1.0) >= seconds + 1


class TestProbe:
    @pytest.mark.slow
    def test_a_probe_times_real_steps_once_on_a_machine(self, planned, monkeypatch):
        study, sets, plan, _ = planned(training={"steps": 600})
        jobs = [Job("training", plan[0].trial), Job("judging", plan[0].trial)]
        told = []
        how = {"n_at_once": 1, "progress": lambda done, of: told.append((done, of))}
        training, judging = run_probes(jobs, sets, study.resources, **how)
        assert told == [(0, 2), (1, 2), (2, 2)]
        assert training.keys() == TRAINING.keys() and judging.keys() == JUDGING.keys()
        assert 0 < training["forward_s"] < training["step_s"] < 5
        assert min(judging.values()) > 0
        assert 100 < training["peak_mb"] < 4000  # torch alone takes some hundreds

        monkeypatch.setattr(probe.subprocess, "Popen", lambda *_, **__: pytest.fail("probed again"))
        assert run_probes(jobs, sets, study.resources, n_at_once=1) == [training, judging]

    def test_what_decides_the_time_decides_what_is_remembered(self, planned):
        def name(**changes):
            _, sets, plan, _ = planned(**changes)
            return probe._name(Job("training", plan[0].trial), sets, {"at once": 1})

        same = name()
        assert name(seeds=[7]) == same == name(training={"steps": 60, "lr": 0.1})
        others = [{"crop_px": 40}, {"batch_size": 4}, {"precision": "bfloat16"}, {"augment": {"flips": False}}]
        names = {name(training=changes) for changes in others} | {name(model={"base_features": 4})}
        assert len(names | {same}) == 6

    def test_a_worker_is_probed_with_its_part_of_the_batch(self, planned):
        plan = planned(training={"batch_size": 5})[2]
        job = probe._as_worker(Job("training", plan[0].trial), 2)
        assert job.trial.training.batch_size == 3

    def test_a_probe_is_compiled_where_the_whole_training_is(self, planned):
        _, sets, plan, _ = planned(training={"compile": "on"})
        job = Job("training", plan[0].trial)
        alone, shared = (probe._as_worker(job, n) for n in (1, 2))
        assert (alone.trial.training.compile, shared.trial.training.compile) == ("on", "off")
        _, _, plan, _ = planned()
        plain = probe._as_worker(Job("training", plan[0].trial), 1)
        assert probe._name(alone, sets, {}) != probe._name(plain, sets, {})

    def test_a_failing_probe_says_what_a_trial_would(self, planned):
        job = Job("training", planned()[2][0].trial)
        with pytest.raises(StudyError, match="Dice: the probe of its training failed, as a trial would: out of memory"):
            probe._together([dict(TRAINING), {"error": "out of memory"}], job)

    def test_two_processes_give_the_mean_time_and_the_highest_peak(self, planned):
        job = Job("training", planned()[2][0].trial)
        slower = TRAINING | {"step_s": 1.5, "peak_mb": 500.0}
        assert probe._together([dict(TRAINING), slower], job) == TRAINING | {"step_s": 1.0}

    def test_some_images_fill_a_batch_of_predictions(self):
        shapes = [(1000, 1000), (600, 1000)] * 3
        dataset = SimpleNamespace(shapes=shapes)
        assert megapixels(dataset, range(6)) == pytest.approx(4.8)
        # 2.1 of 4.8 megapixels: 2 of 6 images, the first and the fourth
        assert _some(dataset, range(6)) == [3, 0]
        assert _some(SimpleNamespace(shapes=[(4000, 4000)]), [0]) == [0]

    def test_the_largest_batch_is_that_of_one_shape_with_most_pixels(self):
        # 2^21 pixels are predicted at once: 2 of the images of 1000x1000, all 3 of 600x600, 1 in tiles
        shapes = [(600, 600), (1000, 1000), (1000, 1000), (600, 600), (1000, 1000), (600, 600), (1200, 1200)]
        dataset = SimpleNamespace(shapes=shapes)
        assert _largest_batch(dataset, range(7), 1024) == [1, 2]
        assert _largest_batch(dataset, [0, 3, 5, 6], 1024) == [6]
        assert _largest_batch(dataset, [0, 3, 5], 1024) == [0, 3, 5]


class TestEffect:
    def typical(self, n_seeds, n_images):
        s2, i2, r2 = (TYPICAL_SD[name] ** 2 for name in ("seed", "image", "rest"))
        by_seed, by_image = (s2 + r2 / n_images) / n_seeds, i2 / n_images
        return sum(
            math.sqrt(by_seed * student.ppf(p, n_seeds - 1) ** 2 + by_image * student.ppf(p, n_images - 1) ** 2)
            for p in (0.975, 0.8)
        )

    def test_without_records_typical_variances_tell(self, planned):
        study, _, plan, ledger = planned(seeds=[0, 1, 2])
        found = smallest_effect(ledger, study, plan, n_seeds=3, n_units=40)
        assert found is not None and found.difference == pytest.approx(self.typical(3, 40))
        assert found.source.startswith("typical variances")
        more = smallest_effect(ledger, study, plan, n_seeds=10, n_units=40)
        assert more is not None and more.difference < found.difference
        for metric in ("mae", "medae"):  # no share, and no sum over images
            by_metric = study.model_copy(update={"evaluation": EvaluationConfig(rank_by=metric)})
            assert smallest_effect(ledger, by_metric, plan, n_seeds=3, n_units=40) is None

    def test_the_studys_own_records_tell_better(self, planned, monkeypatch):
        contenders = [{"label": name, "loss": {"name": name}} for name in ("dice", "bce", "focal")]
        study, _, plan, ledger = planned(configurations=contenders, seeds=[0, 1, 2])
        rng = np.random.default_rng(3)
        block = rng.uniform(0, 1, (3, 3, 4)) + np.array([0, 0.2, -0.4])[:, None, None]
        samples, done = {}, []
        for p in plan:
            place = ["dice", "bce", "focal"].index(p.label)
            lost = (p.label, p.seed) == ("focal", 2)
            metrics = {} if lost else {"own": {"test": {"f1_iou": block[place, p.seed].mean()}}}
            done.append(stored(p, outcome="collapsed" if lost else "finished", metrics=metrics))
            values = {"f1_iou": block[place, p.seed]}
            samples[p.key] = {("test", "own"): Sample(tuple("abcd"), values, {})}
        monkeypatch.setattr(Results, "samples", samples)
        monkeypatch.setattr(Results, "nothing", {})
        block[2, 2] = 0  # a collapse counts as worst on every image
        leader = block.mean((1, 2)).argmax()
        n_seeds, sizes = 6, []
        for other in {0, 1, 2} - {leader}:
            d = block[leader] - block[other]
            of_seed, of_image, mean = d.mean(1), d.mean(0), d.mean()
            rest = sum((d[s, i] - of_seed[s] - of_image[i] + mean) ** 2 for s in range(3) for i in range(4)) / (2 * 3)
            seed = max((4 * sum((of_seed - mean) ** 2) / 2 - rest) / 4, 0)
            image = max((3 * sum((of_image - mean) ** 2) / 3 - rest) / 3, 0)
            by_seed, by_image = (seed + rest / 4) / n_seeds, image / 4
            sizes.append(
                sum(
                    math.sqrt(by_seed * student.ppf(p, n_seeds - 1) ** 2 + by_image * student.ppf(p, 3) ** 2)
                    for p in (0.975, 0.8)
                )
            )
        found = smallest_effect(ledger, study, done, n_seeds=n_seeds, n_units=99)
        assert found is not None
        assert found.difference == pytest.approx(np.median(sizes))
        assert (found.n_seeds, found.n_units) == (6, 4)
        assert "the study's own 3 seeds" in found.source

    def test_groups_of_images_are_one_unit_each(self):
        dataset = SimpleNamespace(groups=["a", "a", "", "", "b"])
        assert n_units(dataset, [0, 1, 2, 3, 4]) == 4
        assert n_units(dataset, [0, 1]) == 1


def test_a_forecast_can_be_written_as_json(planned, probes):
    assert json.loads(json.dumps(asdict(forecast(*planned(), machine=LAPTOP))))["n_todo"] == 2


@pytest.mark.parametrize(
    ("further", "done", "words"),
    [
        (Further(60), 0, "from 60 to 120 trials, 0 done|none, if the first decide"),
        (Further(60, 60), 60, "60 done|probably all of them"),
        (Further(40, 24), 60, "from 60 to 100 trials, 60 done|about 24, if seeds go on like those so far"),
        (Further(40, None, True), 60, "test images are lacking, not seeds"),
        (Further(0, 0), 60, "60 trials, 60 done, 0 to do"),
        (Further(None, 24), 60, "from 60 trials up to 6h of them, 60 done|about 24"),
    ],
)
def test_a_plan_says_how_many_trials_a_study_comes_to_that_decides(capsys, further, done, words):
    study = SimpleNamespace(decide=SimpleNamespace(at_most="6h"))
    print_further(study, further, 60, done)
    said = capsys.readouterr().out
    assert all(part in said for part in words.split("|")), said


@pytest.mark.slow
def test_the_reference_study_is_planned_on_a_machine_without_a_gpu(tmp_path, monkeypatch):
    if has_gpu():
        pytest.skip("This machine has a GPU.")
    draw_images(tmp_path / "fnc/yellow", n_trainval=6, n_test=3, side_px=520)
    env = {"FNC_ROOT": str(tmp_path / "fnc"), "CELLRAY_CACHE": str(tmp_path / "cache")}
    file = str(Path(__file__).parents[1] / "search_spaces/ablation.yaml")
    told = run_here("plan", file, cwd=tmp_path, env=env)
    assert told.returncode == 0, told.stderr
    for words in (
        "60 trials, 0 done, 60 to do",
        "not measured on this machine: timing takes up to",
        "GiB a worker (of a process, libraries included; counted for 32 bits, not measured)",
        "effect:",
    ):
        assert words in told.stdout, told.stdout
    there = ("--nodes", "8", "--gpus-per-node", "4", "--rate", "40")
    answer = json.loads(run_here("plan", file, *there, "--json", cwd=tmp_path, env=env).stdout)
    assert (answer["concurrent"], answer["gpus"]) == (32, 1)
    # 200 epochs of one batch of 32 crops of 512 px, at the least
    assert answer["gpu_hours"] > 60 * 200 * 32 * 512**2 / 1e6 / 40 / 3600
    # batches of 32 crops of 512 px are more like 4 of them than like 8 of 128
    rates = tmp_path / "training-cuda.json"
    rates.write_text(json.dumps({"mpx_s": {"8x128": 1, "4x512": 40}}))
    there = (*there[:-1], str(rates))
    assert json.loads(run_here("plan", file, *there, "--json", cwd=tmp_path, env=env).stdout) == answer
    wrong = run_here("plan", file, *there[:-1], file, cwd=tmp_path, env=env)
    assert wrong.returncode == 2 and "expected a number, or a file that `make gpu` wrote" in wrong.stderr
    wrong = run_here("plan", file, "--gpus-per-node", "4", cwd=tmp_path, env=env)
    assert wrong.returncode == 2 and "give --nodes, too" in wrong.stderr
