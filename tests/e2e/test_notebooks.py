"""The notebooks for Colab and Kaggle, run for real against a sender; the dashboard's lines are theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from support.fleet import Fleet
from support.waiting import wait_for
from trainforge.sender.executor_pages import VISITS, join_line

RUN = """
import nbclient, nbformat, sys
def said(cell, execute_reply=None, **_):
    print(cell.source, cell.get("outputs"), flush=True)
book = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(book, timeout=120, on_cell_executed=said).execute()
"""
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MANIFEST = "project: {name: t}\ntraining: {script: t.py, launcher: python}\n"


def code(kind: str) -> list[Any]:
    notebook = nbformat.read(EXAMPLES / f"{kind}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("kind", sorted(VISITS))
def test_the_dashboard_shows_the_notebooks_own_lines(kind: str) -> None:
    command = "trainforge executor start --ephemeral {SENDER} {TOKEN}"
    shown = join_line(kind, "NAME", command).replace("--name NAME", "--name {NAME}")
    install, _, start = (cell.source for cell in code(kind))
    assert shown == f"{install}\n{start}"


@pytest.mark.parametrize("kind", sorted(VISITS))
def test_a_notebook_says_what_the_terms_allow(kind: str) -> None:
    notebook = nbformat.read(EXAMPLES / f"{kind}.ipynb", as_version=4)
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "terms allow" in text
    assert "they bind you, not us" in text
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_notebooks_join_train_and_are_forgotten(fleet: Fleet) -> None:
    fleet.start_sender()
    books = {kind: run(fleet, kind) for kind in sorted(VISITS)}

    def told() -> str:
        return "".join((fleet.root / f"{kind}.log").read_text() for kind in books) + fleet.logs()

    try:
        here = wait_for("both", lambda: len(found := visitors(fleet)) == len(books) and found, 60, told)
        assert {one["name"] for one in here} == {f"{kind}-1" for kind in VISITS}
        assert all(one["ephemeral"] and one["capabilities"]["session_ends"] for one in here)
        project = fleet.project("p", {"trainforge.yaml": MANIFEST, "t.py": "print(6 * 7)\n"})
        fleet.push(project)
        assert fleet.wait_ended(fleet.the_job())["state"] == "completed"
        for one in here:
            fleet.api("DELETE", f"/api/executors/{one['id']}")
        wait_for("their end", lambda: all(book.poll() is not None for book in books.values()), 30, told)
        assert [book.returncode for book in books.values()] == [0] * len(books), told()
    finally:
        for book in books.values():
            book.kill()
            book.wait()
    assert {one["status"] for one in visitors(fleet)} <= {"revoked"}  # who trained is known of still


def visitors(fleet: Fleet) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = fleet.api("GET", "/api/executors")["executors"]
    return [one for one in listed if one["last_seen"]]


def run(fleet: Fleet, kind: str) -> subprocess.Popen[bytes]:
    """As a person does it: fill in what the sender gave, then run all cells."""
    token = fleet.api("POST", "/api/join-tokens", json={"ephemeral": True})["token"]
    notebook = nbformat.read(EXAMPLES / f"{kind}.ipynb", as_version=4)
    (given,) = [cell for cell in notebook.cells if cell.source.startswith("SENDER")]
    given.source = given.source.replace("https://sender.example.org", fleet.url).replace(
        "paste it here", token
    )
    path = fleet.root / f"{kind}.ipynb"
    nbformat.write(notebook, path)
    with (fleet.root / f"{kind}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, path],
            cwd=fleet.root, stdout=log, stderr=log,
            env=fleet.environment(settings={"heartbeat_every": 1}),
        )  # fmt: skip
