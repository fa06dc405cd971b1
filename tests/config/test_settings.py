"""Settings: where a value comes from, what is refused and where, and that secrets stay unseen."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, TypeAdapter

from trainforge.config.errors import SettingsError
from trainforge.config.messages import Name
from trainforge.config.settings import (
    ClientSettings,
    ExecutorSettings,
    SenderSettings,
    WatchedRepository,
    client_path,
    host_name,
    load_client,
    save_client,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("TRAINFORGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    return file


def refused(kind: type[Any], file: Path | None = None, **explicit: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        kind.load(file, **explicit)
    return str(caught.value).replace(f"{file}:", "s.yaml:")


def test_defaults(tmp_path: Path) -> None:
    sender, executor = SenderSettings.load(), ExecutorSettings.load()
    assert (sender.host, sender.port, sender.data_dir) == (
        "127.0.0.1",
        8420,
        tmp_path / "data/trainforge/sender",
    )
    assert (sender.poll_interval, sender.lease_ttl, sender.lost_after, sender.heartbeat_every) == (
        60,
        90,
        600,
        10,
    )
    assert (executor.connection, executor.tunnel, executor.max_jobs) == ("pull", "none", 1)
    assert executor.name == host_name()


def test_caller_then_environment_then_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "port: 1\nhost: file\npublic_url: http://file/\nlease_ttl: 2m\n")
    monkeypatch.setenv("TRAINFORGE_SENDER_HOST", "environment")
    monkeypatch.setenv("TRAINFORGE_SENDER_PORT", "2")
    settings = SenderSettings.load(file, port=3)
    assert (settings.port, settings.host, settings.public_url) == (3, "environment", "http://file")
    assert settings.lease_ttl == 120
    assert SenderSettings().host == "environment"
    assert SenderSettings.load().public_url == ""


def test_lists_and_mappings_from_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "repositories:\n- https://example.org/a.git\n- {url: /srv/b.git, name: b}\n")
    both = [WatchedRepository(url="https://example.org/a.git"), WatchedRepository(url="/srv/b.git", name="b")]
    assert SenderSettings.load(file).repositories == both
    monkeypatch.setenv("TRAINFORGE_SENDER_REPOSITORIES", "https://example.org/c, /d")
    assert [entry.url for entry in SenderSettings.load(file).repositories] == ["https://example.org/c", "/d"]
    monkeypatch.setenv("TRAINFORGE_SENDER_REPOSITORIES", '[{"url": "/e", "name": "e"}]')
    assert SenderSettings.load(file).repositories == [WatchedRepository(url="/e", name="e")]
    monkeypatch.setenv("TRAINFORGE_EXECUTOR_LABELS", "zone=lab, rack=7")
    monkeypatch.setenv("TRAINFORGE_EXECUTOR_ADVERTISE", "10.0.0.1,10.0.0.2")
    executor = ExecutorSettings.load(written(tmp_path, "labels: {gpu: no}"))
    assert executor.labels == {"zone": "lab", "rack": "7"}
    assert executor.advertise == ["10.0.0.1", "10.0.0.2"]


def test_file_values_follow_yaml_1_2(tmp_path: Path) -> None:
    executor = ExecutorSettings.load(written(tmp_path, "labels: {country: no, version: '3.10'}\nname: 7\n"))
    assert executor.labels == {"country": "no", "version": "3.10"}
    assert executor.name == "7"


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    assert SenderSettings.load(written(tmp_path, "")) == SenderSettings.load()


def test_data_dir_knows_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    assert SenderSettings.load(data_dir="~/tf").data_dir == Path("/home/x/tf")


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (SenderSettings, "host: a\nport: 99999", "s.yaml:2:7: port: must be less than or equal to 65535"),
        (SenderSettings, "hots: a", "s.yaml:1:1: hots: unknown setting; did you mean host?"),
        (SenderSettings, "lease_ttl: soon", "s.yaml:1:12: lease_ttl: expected a duration"),
        (SenderSettings, "lease_ttl: 5", "lease_ttl must be at least twice heartbeat_every"),
        (SenderSettings, "public_url: ftp://x", "s.yaml:1:13: public_url: expected a URL"),
        (SenderSettings, "public_url: https://u:p@x", "s.yaml:1:13: public_url: expected a URL"),
        (SenderSettings, "port: 1\nport: 2", "s.yaml:2:1: port: repeated; it stands"),
        (SenderSettings, "port: [", "s.yaml:2:1: not valid YAML: while parsing a flow node"),
        (SenderSettings, "repositories: [{url: ''}]", "s.yaml:1:22: repositories[0].url: must have"),
        (ExecutorSettings, "tunnel: command", "tunnel: command needs tunnel_command, such as"),
        (ExecutorSettings, "tunnel_command: x", "tunnel_command goes with tunnel: command"),
        (ExecutorSettings, "tunnel: ngrok\npublic_url: http://x", "public_url and a tunnel exclude"),
        (ExecutorSettings, "connection: both", "s.yaml:1:13: connection: must be 'pull'"),
        (ExecutorSettings, "max_jobs: 0", "s.yaml:1:11: max_jobs: must be greater than or equal to 1"),
        (ExecutorSettings, "available: at night", "s.yaml:1:12: available: expected days and hours"),
        (ExecutorSettings, "labels: [a]", "s.yaml:1:9: labels: must be a valid dictionary"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_where_and_why(kind: type[Any], text: str, message: str, tmp_path: Path) -> None:
    assert refused(kind, written(tmp_path, text)).startswith(message)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = written(tmp_path, "port: 1")
    monkeypatch.setenv("TRAINFORGE_SENDER_PORT", "many")
    assert refused(SenderSettings, file).startswith("TRAINFORGE_SENDER_PORT: must be a valid integer")
    monkeypatch.setenv("TRAINFORGE_EXECUTOR_LABELS", "zone")
    assert refused(ExecutorSettings).startswith("TRAINFORGE_EXECUTOR_LABELS: expected key=value")
    monkeypatch.setenv("TRAINFORGE_EXECUTOR_LABELS", "{broken")
    assert refused(ExecutorSettings).startswith("TRAINFORGE_EXECUTOR_LABELS: expected JSON")


def test_a_misspelt_variable_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINFORGE_SENDER_URL", "http://sender")  # the command line's
    monkeypatch.setenv("TRAINFORGE_SENDER_PROT", "1")
    said = "TRAINFORGE_SENDER_PROT: unknown setting; did you mean TRAINFORGE_SENDER_PORT?"
    assert refused(SenderSettings) == said
    ExecutorSettings.load()


def test_every_fault_at_once(tmp_path: Path) -> None:
    said = refused(SenderSettings, written(tmp_path, "port: x\nhots: a\npoll_interval: 0\n"))
    assert [line.rpartition(":")[0] for line in said.splitlines()] == [
        "s.yaml:1:7: port",
        "s.yaml:3:16: poll_interval",
        "s.yaml:2:1: hots",
    ]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read: No such file or directory; check the path"):
        SenderSettings.load(tmp_path / "missing.yaml")


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINFORGE_SENDER_WEBHOOK_SECRET", "canary-one")
    file = written(tmp_path, "git_token: canary-two\ndatabase_url: postgresql://u:canary-three@db/tf\n")
    settings = SenderSettings.load(file, previous_webhook_secret="canary-four")
    assert settings.webhook_secrets == ["canary-one", "canary-four"]
    assert settings.database_url == "postgresql://u:canary-three@db/tf"
    assert "canary" not in f"{settings!r} {settings} {settings.shown()}"
    assert settings.shown()["database_url"] == "postgresql://u:********@db/tf"
    assert settings.shown()["git_token"] == "********"
    said = refused(SenderSettings, written(tmp_path, "git_token: [canary]\nwebhook_secret: {a: canary}\n"))
    assert "canary" not in said


def test_the_client_keeps_its_sender_for_the_owner_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_client() == ClientSettings()
    path = save_client(ClientSettings(sender_url="http://127.0.0.1:8420/", token=SecretStr("tfp_x")))
    assert path == client_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    found = load_client()
    assert (found.sender_url, found.token.get_secret_value()) == ("http://127.0.0.1:8420", "tfp_x")
    save_client(ClientSettings(sender_url="https://other", token=SecretStr("tfp_y")))
    assert load_client().sender_url == "https://other"
    monkeypatch.setenv("TRAINFORGE_TOKEN", "tfp_env")
    assert load_client().token.get_secret_value() == "tfp_env"
    assert load_client().sender_url == "https://other"


def test_a_spoilt_client_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"c\.json:1:4: sender: unknown setting; did you mean sender_url\?"
    ):
        load_client(_file(tmp_path / "c.json", '{  "sender": "http://x"}'))


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_host_name_is_a_name() -> None:
    TypeAdapter(Name).validate_python(host_name())
