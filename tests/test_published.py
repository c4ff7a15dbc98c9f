"""The shipped tables, their aggregates under both rules, and the command that shows them."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cellray.cli.audit import audit_app
from cellray.published import PUBLISHED_METRICS, order_statistics, recount, slides

AUDIT = typer.Typer()
AUDIT.add_typer(audit_app, name="audit")

RUNS = ["v1", "v2", "v3", "v4", "v5"]
IN_SLIDES = ("f1_iou", "mae", "medae", "mpe")


def at(configuration: str, metric: str) -> dict:
    table = recount()
    return table[(table["configuration"] == configuration) & (table["metric"] == metric)].iloc[0].to_dict()


def test_tables_are_whole():
    stats = order_statistics()
    assert len(slides()) == 12 and len(stats) == 12 * 6
    assert set(stats["configuration"]) == set(slides()["configuration"])
    values = stats[RUNS].to_numpy()
    assert np.array_equal(np.isfinite(values).sum(axis=1), stats["valid_runs"])
    for row, (_, entry) in zip(values, stats.iterrows(), strict=True):
        runs = [v for v in row if np.isfinite(v)]
        assert runs == sorted(runs)
        assert statistics.mean(runs) == pytest.approx(entry["mean_of_valid"], abs=1e-4)
        assert statistics.stdev(runs) == pytest.approx(entry["std_of_valid"], abs=1e-4)


def test_survivors_only_rebuild_the_slides_but_five_sds():
    table = recount()
    assert set(table.loc[table["differs"], ["configuration", "metric"]].itertuples(index=False, name=None)) == {
        ("Focal", "f1_iou"), ("Focal", "mae"), ("Focal", "medae"), ("Focal", "mpe"), ("Focal Tversky", "mpe"),
    }  # fmt: skip
    assert not table["mean_differs"].any()
    shown = table[table["metric"].isin(IN_SLIDES)]
    assert shown["slides_mean"].to_numpy() == pytest.approx(shown["valid_mean"].to_numpy(), abs=6e-4)
    same = shown[~shown["sd_differs"]]
    assert same["slides_sd"].to_numpy() == pytest.approx(same["valid_sd"].to_numpy(), abs=6e-4)


def test_slides_have_neither_precision_nor_recall():
    table = recount()
    others = table[~table["metric"].isin(IN_SLIDES)]
    assert len(others) == 24 and others["slides_mean"].isna().all() and not others["differs"].any()


def test_focal_tversky_is_first_of_its_survivors_and_last_when_a_collapse_counts():
    winner = at("Focal Tversky", "f1_iou")
    assert (winner["n_valid"], winner["n_runs"], winner["n_collapsed"]) == (3, 5, 2)
    assert winner["valid_mean"] == pytest.approx((0.7794 + 0.7808 + 0.7833) / 3)
    assert winner["all_mean"] == pytest.approx((0.7794 + 0.7808 + 0.7833) / 5)
    assert (winner["valid_rank"], winner["all_rank"]) == (1, 12)
    second_last = at("Focal", "f1_iou")
    assert second_last["all_mean"] == pytest.approx((0.3563 + 0.6758 + 0.6824 + 0.7411) / 5)
    assert (second_last["valid_rank"], second_last["all_rank"]) == (12, 11)
    assert at("CombinedFT: balanced", "f1_iou")["all_rank"] == 1


def test_a_collapsed_run_has_a_perfect_released_error_and_the_largest_one_by_default():
    error = at("Focal Tversky", "mae")
    assert error["n_valid"] == 5
    assert error["valid_mean"] == pytest.approx((0 + 0 + 1.95 + 2.05 + 2.10) / 5)
    largest = 3.0286  # BCE: high's worst run, the largest of the table
    assert error["all_mean"] == pytest.approx((2 * largest + 1.95 + 2.05 + 2.10) / 5)
    assert (error["valid_rank"], error["all_rank"]) == (1, 11)


def test_configurations_without_a_collapse_are_the_same_under_both_rules():
    table = recount()
    whole = table[table["n_collapsed"] == 0]
    assert len(whole) == 10 * 6
    assert whole["valid_mean"].to_numpy() == pytest.approx(whole["all_mean"].to_numpy())
    assert whole["valid_sd"].to_numpy() == pytest.approx(whole["all_sd"].to_numpy())


def test_the_command_prints_every_metric_of_the_slides_within_100_columns(monkeypatch):
    monkeypatch.setattr("cellray.cli.common.out.width", 100)
    result = CliRunner().invoke(AUDIT, ["audit", "published"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("Focal Tversky ") for line in lines) == len(IN_SLIDES)
    last_on_f1 = next(line for line in lines if line.startswith("Focal Tversky "))
    assert " ".join(last_on_f1.split()) == "Focal Tversky 0.781 ± 0.002 0.781 ± 0.002 3 1 0.469 ± 0.428 12"
    assert any("0.614 ± 0.027*" in line and "0.614 ± 0.174" in line for line in lines)


def test_the_command_gives_json():
    result = CliRunner().invoke(AUDIT, ["audit", "published", "--json", "--metric", "precision_iou"])
    rows = json.loads(result.stdout)
    assert len(rows) == 12 and {row["metric"] for row in rows} == {"precision_iou"}
    assert all(row["slides_mean"] is None for row in rows)
    assert set(PUBLISHED_METRICS) >= {"precision_iou"}


def test_an_unknown_metric_is_named():
    result = CliRunner().invoke(AUDIT, ["audit", "published", "--metric", "mape"])
    assert result.exit_code != 0
    assert "mape" in str(result.exception)
