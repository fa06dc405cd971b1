"""The form for a new job: filled in, planned, confirmed; and what it says when that cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.compat import PLUGIN, add_plugin, gpu_machine
from support.web import Web
from trainforge.sender import new_job

READ = f"/new?repository={PLUGIN}&ref=refs/heads/main"
FORM = {
    "form": "1",
    "repository": PLUGIN,
    "ref": "refs/heads/main",
    "committed_nodes": "1",
    "selection": "auto",
}


@pytest.fixture
def fleet(site: Web, tmp_path: Path) -> Web:
    add_plugin(site, tmp_path)
    for number in (1, 2, 3):
        gpu_machine(site, f"gpu-{number}")
    return site


def test_a_job_is_filled_in_planned_confirmed_and_remembered(fleet: Web) -> None:
    with fleet.log_in() as browser:
        assert f"<option>{PLUGIN}</option>" in browser.get("/new").text
        page = browser.get(READ).text
        assert 'name="param:learning_rate" value="" maxlength="1000" placeholder="0.1"' in page
        said = {
            "distributed": "true",
            "nodes": "2",
            "gpu": "2",
            "param:learning_rate": "0.5",
            "remember": "true",
        }
        answer = browser.post("/new", data=FORM | said)
        assert answer.status_code == 303, answer.text
        planned = answer.headers["location"]
        shown = browser.get(planned).text
        assert "learning_rate=0.5" in shown
        assert re.search(r"<td>batch_size</td><td class=\"num\">48</td><td class=\"num\">12</td>", shown)
        assert fleet.sender.queries.jobs(state="active") == []
        changed = browser.get(f"/new?again={planned.rsplit('/', 1)[1]}").text
        assert 'name="param:learning_rate" value="0.5"' in changed
        queued = browser.post(planned)
        job = planned.rsplit("/", 1)[1]
        assert (queued.status_code, queued.headers["location"]) == (303, f"/jobs/{job}")
        assert browser.get(planned).headers["location"] == f"/jobs/{job}"
        assert browser.post(planned).status_code == 303
        assert [one.id for one in fleet.sender.queries.jobs(state="active")] == [job]
        again = browser.get(READ).text
        assert 'name="nodes" value="2"' in again
        assert f"<option selected>{PLUGIN}</option>" in browser.get("/new").text
    assert fleet.sender.store.job(job)["overrides"] == {
        "resources.nodes": 2, "resources.gpu": 2, "training.params.learning_rate": 0.5,
    }  # fmt: skip


def test_a_machine_that_is_not_there_is_named_with_others_that_would_do(fleet: Web) -> None:
    gone = gpu_machine(fleet, "gone")
    with fleet.sender.store.write() as c:
        c.exec_driver_sql("UPDATE executors SET last_seen = 1 WHERE id = ?", (gone,))
    with fleet.log_in() as browser:
        manual = FORM | {"selection": "manual"}
        assert "no machine is chosen" in browser.post("/new", data=manual).text
        planned = browser.post("/new", data=manual | {f"machine:{gone}": "true"}).headers["location"]
        page = browser.get(planned).text
        assert "The machines you chose cannot take it now" in page
        assert "<b>gone</b>: " in page
        instead = re.search(r"Train on (gpu-\d) instead", page)
        assert instead is not None
        job = browser.post(planned, data={"instead": "true"}).headers["location"].rsplit("/", 1)[1]
    (chosen,) = fleet.sender.store.job(job)["executors"]
    assert fleet.sender.queries.executor(chosen, 0).name == instead[1]


def test_too_few_resources_are_told_with_what_would_help(fleet: Web) -> None:
    with fleet.log_in() as browser:
        planned = browser.post("/new", data=FORM | {"gpu": "4"}).headers["location"]
        page = browser.get(planned).text
        assert "The machines there are do not suffice now" in page
        assert "What would help" in page
        assert "Queue it all the same" in page


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"commit": "abc"}, "is no commit here"),
        ({"commit": "b" * 40}, "has no commit"),
        ({"manifest_path": "other/trainforge.yaml"}, "other/trainforge.yaml"),
        ({"memory": "lots"}, "resources.memory"),
        ({"more": "nonsense"}, "is not KEY=VALUE"),
        ({"repository": "nobody"}, "nobody"),
    ],
)
def test_what_is_wrong_is_said_and_what_was_typed_stays(fleet: Web, said: dict[str, str], words: str) -> None:
    with fleet.log_in() as browser:
        answer = browser.post("/new", data=FORM | {"gpu": "2"} | said)
    assert answer.status_code in {400, 404, 422}
    assert words in answer.text
    assert "Try again" in answer.text


def test_a_repository_that_is_not_reached_is_told_with_a_way_back(site: Web, tmp_path: Path) -> None:
    commit = add_plugin(site, tmp_path)
    with site.sender.store.write() as c:
        url = "http://127.0.0.1:9/models.git"
        c.exec_driver_sql("UPDATE repositories SET kind = 'remote', url = ? WHERE name = ?", (url, PLUGIN))
    with site.log_in() as browser:
        page = browser.post("/new", data=FORM | {"commit": commit})
    assert page.status_code >= 400
    assert "127.0.0.1" in page.text
    assert "Try again" in page.text


def test_fields_left_empty_change_nothing() -> None:
    assert new_job.overrides_of({"gpu": " ", "param:lr": ""}) == {}
    assert new_job.overrides_of({"committed_nodes": "2:4"}) == {"resources.nodes": 1}
    assert new_job.overrides_of({"distributed": "true", "nodes": "1:3"}) == {"resources.nodes": "1:3"}
