"""The warning of services that stand open to the internet. Numbers are asked for only: no test connects to one."""

from __future__ import annotations

import pytest

from cellray.cli.exposed import is_public, warn_of_exposed

GIVEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN")


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in GIVEN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("address", ["8.8.8.8:6379", "http://8.8.8.8:8265", "https://8.8.8.8", "[2001:4860::1]:6379"])
def test_a_public_address(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    ["auto", "local", "localhost:6379", "127.0.0.1:6379", "http://10.0.0.4:8265", "192.168.1.2", "172.16.0.1:1",
     "[::1]:6379", "[fe80::1]:6379", "http://[", "", "sqlite:///here.db"],
)  # fmt: skip
def test_no_public_address(address):
    assert not is_public(address)


def test_an_open_cluster_and_an_open_server_are_named(capsys):
    warn_of_exposed(address="http://8.8.8.8:8265", tracking_uri="https://8.8.4.4/mlflow")
    ray, mlflow = capsys.readouterr().err.strip().splitlines()
    assert ray.startswith("Warning: --address http://8.8.8.8:8265 is a public address") and "RAY_AUTH_TOKEN" in ray
    assert mlflow.startswith("Warning: --tracking-uri https://8.8.4.4 is a public address")
    assert "MLFLOW_TRACKING_PASSWORD" in mlflow


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/x"), ("~/.ray/auth_token", "x")],
)
def test_no_word_where_ray_is_shown_a_token(capsys, monkeypatch, tmp_path, name, value):
    if name.startswith("~"):
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text(value)
    else:
        monkeypatch.setenv(name, value)
    warn_of_exposed(address="8.8.8.8:6379")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # whatever lies about
    warn_of_exposed(address="8.8.8.8:6379")
    assert "public address" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN", "in the address"])
def test_no_word_where_mlflow_gets_a_password(capsys, monkeypatch, name):
    if name.startswith("MLFLOW"):
        monkeypatch.setenv(name, "x")
    warn_of_exposed(tracking_uri="https://8.8.8.8" if name.startswith("MLFLOW") else "https://me:hush@8.8.8.8")
    assert capsys.readouterr().err == ""


def test_no_word_of_what_is_not_reached_over_http(capsys):
    warn_of_exposed(address=None, tracking_uri="sqlite:////data/8.8.8.8/mlflow.db")
    warn_of_exposed(address="auto", tracking_uri="postgresql://me@8.8.8.8/mlflow")
    assert capsys.readouterr().err == ""
