"""The pages beside those of one job: lists, executors, settings."""

from __future__ import annotations

import re
import time
from pathlib import Path

from support.compat import PLUGIN, add_plugin
from support.repositories import Project
from support.web import COMMIT, Web
from trainforge.sender import events, job_list

PAGE = {"Accept": "text/html"}


def _shown(site: Web, query: str = "") -> list[str]:
    page = site.ask("GET", f"/jobs{query}", headers=PAGE)
    assert page.status_code == 200, page.text
    return re.findall(r'href="/jobs/([a-z2-7]{26})"', page.text)


def test_jobs_are_found_by_every_filter_and_by_words(site: Web) -> None:
    one = site.add_job(subject="Try a larger batch", author="ada", ref="refs/heads/wide")
    two = site.add_job(subject="100% sure", author="bo", project="words")
    site.set(two, source="submit")
    site.end(two, "failed")
    for query, expected in {
        "": [two, one],
        "?state=active": [one],
        "?state=failed": [two],
        "?state=nonsense": [two, one],
        "?project=words": [two],
        "?repository=demo&branch=wide": [one],
        "?author=bo": [two],
        "?source=submit": [two],
        "?q=LARGER+try": [one],
        "?q=100%25": [two],
        "?q=10_%25": [],
        f"?q={COMMIT[:8]}": [two, one],
        "?q=larger&state=failed": [],
    }.items():
        assert _shown(site, query) == expected, query
    straight = site.ask("GET", f"/jobs?q={one[:9]}", headers=PAGE)
    assert (straight.status_code, straight.headers["location"]) == (303, f"/jobs/{one}")


def test_a_page_leads_to_the_next_with_the_same_filters(site: Web) -> None:
    jobs = [site.add_job(subject="even" if number % 2 else "odd") for number in range(110)]
    first = site.ask("GET", "/jobs?q=even", headers=PAGE).text
    older = re.search(r'href="(/jobs\?q=even&amp;before=\w+)" rel="next"', first)
    assert older is not None
    both = _shown(site, "?q=even") + _shown(site, older[1].removeprefix("/jobs").replace("&amp;", "&"))
    assert both == [job for number, job in enumerate(jobs) if number % 2][::-1]
    assert _shown(site, "?before=unknown") == []


def test_a_row_tells_why_it_waits_how_far_it_is_and_its_primary_metric(site: Web) -> None:
    manifest = "project: {name: d}\ntraining: {script: a.py}\nmetrics: {primary: f1, mode: max}\n"
    job = site.add_job(manifest_text=manifest)
    site.set(job, waiting={"alpha": "has no GPUs", "beta": "is offline"})
    page = site.ask("GET", "/jobs", headers=PAGE).text
    assert "alpha: has no GPUs" in page
    assert "and 1 more" in page
    started = time.time() - 60
    site.set(job, state="running", progress=0.25, started=started, waiting={}, metrics={"loss": 2, "f1": 0.5})
    page = site.ask("GET", "/jobs", headers=PAGE).text
    assert "25%, about 3 min" in page
    assert "<b>f1</b> 0.5" in page
    assert job_list.key_metric(site.sender.queries.job(job), "gone") == ("loss", 2)


def test_the_list_tells_its_version_by_the_same_filters(site: Web) -> None:
    site.add_job(project="seen")
    page = site.ask("GET", "/jobs?project=seen", headers=PAGE).text
    stream = re.search(r'data-stream="([^"]+)" data-version="(\w+)"', page)
    assert stream is not None
    assert stream[1] == "/api/changes?page=jobs&amp;project=seen"
    sender = site.sender
    wanted = job_list.Wanted(project="seen")
    assert job_list.version(sender, wanted) == stream[2]
    site.add_job(project="other")
    assert job_list.version(sender, wanted) == stream[2]
    site.add_job(project="seen")
    assert job_list.version(sender, wanted) != stream[2]


# --- executors --------------------------------------------------------------------------------------------


def test_executors_are_shown_in_the_way_a_person_likes(site: Web) -> None:
    site.add_executor("alpha", labels={"zone": "east"})
    with site.log_in() as browser:
        assert '<ul class="grid">' in browser.get("/executors").text
        assert "zone=east" in browser.get("/executors?view=table").text
        assert "<table>" in browser.get("/executors").text


def test_an_executor_is_drained_asked_and_removed_without_a_script(site: Web) -> None:
    executor = site.add_executor("alpha")
    with site.log_in() as browser:
        at = f"/executors/{executor}"
        assert browser.post(f"{at}/drain").status_code == 303
        assert "draining" in browser.get(at).text
        assert browser.post(f"{at}/undrain").status_code == 303
        assert "draining" not in browser.get(at).text
        with site.sender.store.write() as c:
            c.exec_driver_sql("UPDATE executors SET last_seen = 1")
        assert "is `trainforge executor start` running there?" in browser.post("/executors/check").text
        assert browser.post(f"{at}/remove").headers["location"] == "/executors"
        assert "revoked" in browser.get(at).text
    assert {"executor.drained", "executor.removed"} <= {
        row["action"] for row in site.sender.store.audit_rows()
    }


def test_a_machine_is_added_waited_for_approved_and_greeted(site: Web) -> None:
    with site.log_in() as browser:
        form = {"name": "gamma", "kind": "machine", "approval": "true"}
        page = browser.post("/executors/add", data=form).text
        line = re.search(r"trainforge executor join http\S+ (\S+) --name gamma", page)
        assert line is not None
        assert 'data-page="/executors/add/gamma"' in page
        waiting = browser.get("/executors/add/gamma").text
        assert "waiting" in waiting
        assert line[1] not in waiting
        executor = site.add_executor("gamma")
        with site.sender.store.write() as c:
            c.exec_driver_sql("UPDATE executors SET pending = 1")
        assert "waits for approval" in browser.get("/executors/add/gamma").text
        assert browser.post(f"/executors/{executor}/approve").status_code == 303
        assert "Welcome, gamma!" in browser.get("/executors/add/gamma").text
        again = browser.post("/executors/add", data=form)
        assert (again.status_code, "has joined already" in again.text) == (409, True)
        assert browser.post("/executors/add", data={"name": "no good"}).status_code == 422
        notebook = browser.post("/executors/add", data={"name": "lab", "kind": "colab"}).text
        assert "!trainforge executor start --ephemeral" in notebook


def test_only_admins_add_and_remove_machines(site: Web) -> None:
    executor = site.add_executor("alpha")
    site.sender.people.add_user("otto", "operator", site.sender.now())
    with site.log_in("otto") as browser:
        assert browser.get("/executors/add").status_code == 403
        assert browser.post(f"/executors/{executor}/remove").status_code == 403
        assert "Add a machine" not in browser.get("/executors").text


# --- events, queue, settings ------------------------------------------------------------------------------


def test_events_are_filtered_paged_and_looked_at_again(site: Web, tmp_path: Path) -> None:
    add_plugin(site, tmp_path)
    for _ in range(60):
        site.add_job()
    with site.log_in() as browser:
        page = browser.get("/events?repository=demo").text
        assert page.count("<tr>") == 51
        older = re.search(r'href="(/events\?repository=demo&amp;before=\d+)"', page)
        assert older is not None
        assert browser.get(older[1].replace("&amp;", "&")).text.count("<tr>") == 11
        assert "No event matches" in browser.get("/events?decision=refused").text
        again = browser.post("/events/look", data={"repository": f"builtin:{PLUGIN}"})
        assert (again.status_code, again.text.count('<div class="note" role="status">')) == (200, 1)


def test_the_queue_is_in_the_order_in_which_jobs_are_placed(site: Web) -> None:
    late = site.add_job()
    urgent = site.add_job(priority=5)
    site.set(late, waiting={"alpha": "has no GPUs"})
    running = site.add_job()
    site.set(running, state="running")
    page = site.ask("GET", "/queue", headers=PAGE).text
    assert re.findall(r'href="/jobs/([a-z2-7]{26})"', page) == [urgent, late]
    assert "<b>alpha</b>: has no GPUs" in page


def test_settings_are_changed_without_a_script_and_secrets_never_shown(site: Web, tmp_path: Path) -> None:
    git = Project(tmp_path / "models")
    git.commit({"a.txt": "a"}, "Start")
    value = "hf_0123456789abcdef"
    with site.log_in() as browser:
        page = browser.post("/settings/repositories", data={"url": str(tmp_path / "models")}).text
        assert "models is watched from now on" in page
        assert browser.post("/settings/repositories", data={"url": "nonsense"}).status_code >= 400
        (repo,) = [one for one in site.sender.store.repositories() if one.name == "models"]
        page = browser.post("/settings/repositories/remove", data={"repository": repo.id}).text
        assert "models is no longer watched" in page
        git.commit({"trainforge.yaml": "project: {name: d}\ntraining: {script: a.txt}\n"}, "Train unseen")
        assert events.handle_hint(site.sender, repo.id, "poll") == []
        assert browser.post("/settings/repositories/remove", data={"repository": "demo"}).status_code == 409
        browser.post("/settings/repositories", data={"url": str(tmp_path / "models")})
        assert site.get("/api/jobs")["jobs"] == []
        gone = site.ask("DELETE", "/api/repositories/models")
        assert (gone.status_code, gone.json()["name"]) == (200, "models")
        assert site.ask("DELETE", "/api/repositories/models").status_code == 404
        secret = {"name": "HF_TOKEN", "repository": "builtin:demo", "value": value, "branches": "main dev/*"}
        page = browser.post("/settings/secrets", data=secret).text
        assert "HF_TOKEN is kept" in page
        assert "main dev/*" in page
        assert value not in page + browser.get("/settings/secrets").text
        short = browser.post("/settings/secrets", data=secret | {"value": "short"})
        assert (short.status_code, "short" in short.text.replace("shorter", "")) == (422, False)
        browser.post("/settings/secrets/remove", data=secret)
        assert "None yet" in browser.get("/settings/secrets").text
        invited = browser.post("/settings/people", data={"name": "mia", "role": "viewer"}).text
        assert "/login?link=" in invited
        browser.post("/settings/people/role", data={"name": "mia", "role": "operator"})
        assert site.sender.people.account("mia").role == "operator"
        assert "/login?link=" in browser.post("/settings/people/link", data={"name": "mia"}).text
        browser.post("/settings/people/remove", data={"name": "mia"})
        assert browser.post("/settings/people/remove", data={"name": "mia"}).status_code == 404
        made = browser.post("/settings/join-tokens", data={"approval": "true", "max_jobs": "3"}).text
        assert "trainforge executor join" in made
        audit = browser.get("/settings/audit?verify=1").text
        assert "none was changed" in audit
        assert value not in audit


def test_each_role_sees_its_settings(site: Web) -> None:
    site.sender.people.add_user("vera", "viewer", site.sender.now())
    with site.log_in("vera") as browser:
        page = browser.get("/settings").text
        assert "Audit log" not in page
        assert "Watch" not in page
        assert browser.get("/settings/people").status_code == 403
        assert "Look again" not in browser.get("/events").text
