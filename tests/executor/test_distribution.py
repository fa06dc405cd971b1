"""What an executor is installed with: the service's unit, and the image as far as it is judged unbuilt."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from trainforge.sender.executor_pages import DOCKERFILE, join_line

ROOT = Path(__file__).parents[2]
UNIT = "trainforge-executor.service"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "examples" / UNIT).read_text()
    installed = "/opt/trainforge/bin/trainforge"
    assert installed in text
    (tmp_path / UNIT).write_text(text.replace(installed, str(Path(sys.executable).with_name("trainforge"))))
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / UNIT], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_lets_trainings_and_their_walls_be() -> None:
    lines = (ROOT / "docs" / "examples" / UNIT).read_text().splitlines()
    keys = {line.partition("=")[0] for line in lines if re.match(r"\w+=", line)}
    assert "KillMode=process" in lines
    assert not keys & {"RestrictNamespaces", "ProtectKernelTunables", "PrivateDevices", "PrivateTmp"}


def test_the_images_file_has_no_fault() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, ROOT / DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_made_of_what_there_is() -> None:
    text = (ROOT / DOCKERFILE).read_text()
    sources = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert sources
    for name in sources:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in let_in, name


def test_the_dashboard_shows_the_images_own_lines() -> None:
    """The same as those at the head of the file, but for the volume's name and from where it is built."""
    shown = join_line("docker", "lab-1", "trainforge executor join URL TOKEN").replace(" &&\n", "\n")
    written = re.findall(r"^#   (docker .*)$", (ROOT / DOCKERFILE).read_text(), re.MULTILINE)
    said = shown.replace("trainforge-lab-1:", "trainforge:").splitlines()
    assert said[1:] == written[1:]
    assert said[0].rpartition(" ")[0] == written[0].rpartition(" ")[0]
