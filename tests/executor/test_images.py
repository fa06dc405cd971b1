"""Where the images of containers come from: registries, and what is there when they do not answer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import engines
from support.waiting import wait_for
from trainforge.config.errors import NodeFailed
from trainforge.executor import engine as engine_cli
from trainforge.executor import images
from trainforge.executor.commands import Setup

Registry = tuple[str, subprocess.Popen[bytes]]


@pytest.fixture
def registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """One of this test's own: its address, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    about = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": f"{tmp_path}/kept"}},
        "http": {"addr": address},
    }
    (tmp_path / "registry.yml").write_text(json.dumps(about))
    (tmp_path / "registries.conf").write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "registries.conf"))
    with (tmp_path / "registry.log").open("wb") as log:
        argv = ["docker-registry", "serve", str(tmp_path / "registry.yml")]
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    said = tmp_path / "registry.log"
    wait_for("registry", lambda: "listening on" in said.read_text(), 30, said.read_text)
    yield address, process
    process.kill()
    process.wait()


def test_a_tag_is_what_its_registry_has_now(
    engine: engines.TestEngine, tmp_path: Path, registry: Registry
) -> None:
    address, process = registry
    found = engine_cli.find("docker" if engine.kind == "docker" else "podman", os.environ)
    tried, name = engine_cli.try_image(found), f"{address}/ours/shell:1"
    here = images.Images(found, tmp_path / "cache")
    setup = Setup(tmp_path / "setup.log", time.monotonic() + 60, lambda: False)
    engine.run("tag", tried, name)
    engine.run("push", name)
    engine.run("rmi", name)
    about = here.fetch(name, setup)
    pinned = images.digest_of(name, about)
    assert pinned.startswith(f"{address}/ours/shell@sha256:")
    engine.run("rmi", name)
    assert here.fetch(pinned, setup)["Id"] == about["Id"]
    engine.run("tag", tried, name)
    with pytest.raises(NodeFailed) as caught:
        here.fetch(f"{address}/ours/other:1", setup)
    assert caught.value.code == "container_failed"
    process.kill()
    process.wait()
    assert here.fetch(pinned, setup)["Id"] == about["Id"]  # without asking
    assert here.fetch(name, setup)["Id"] == about["Id"]
    assert "the registry does not give" in setup.log.read_text()
    with pytest.raises(NodeFailed, match="no image localhost/none on this machine"):
        here.fetch("localhost/none", setup)
    engine.run("rmi", name)


SHA = "@sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("python", "docker.io/library/python"),
        ("pytorch/pytorch:2.6.0", "docker.io/pytorch/pytorch:2.6.0"),
        ("ghcr.io/ours/x" + SHA, "ghcr.io/ours/x" + SHA),
        ("localhost/x:1", "localhost/x:1"),
        ("box:5000/x", "box:5000/x"),
    ],
)
def test_names_have_a_registry(name: str, whole: str) -> None:
    assert images.qualified(name) == whole


def test_an_image_has_the_digest_of_its_own_name() -> None:
    other = "@sha256:" + "b" * 64
    both = {"RepoDigests": ["ghcr.io/other/x" + other, "pytorch/pytorch" + SHA]}
    assert images.digest_of("docker.io/pytorch/pytorch:2.6.0", both) == "docker.io/pytorch/pytorch" + SHA
    twice = {"RepoDigests": ["box:1/x" + other, "box:1/x" + SHA], "Digest": "sha256:" + "b" * 64}
    assert images.digest_of("box:1/x:2", twice) == "box:1/x" + other
    assert images.digest_of("box:1/y", twice) == ""
