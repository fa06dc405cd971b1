"""The pictures of README.md and docs/dashboard.md, taken of real trainings on two executors:

python tests/pictures.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.browser import launched
from support.fleet import Fleet
from support.waiting import wait_for

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEIGHT = 1280, 1180
PATIENCE_S = 300.0
MOST_BYTES = 200_000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder) / "fleet")
        try:
            fleet.start_sender()
            fleet.add_executor("alpha", labels="zone=lab")
            fleet.add_executor("beta", labels="zone=lab")
            jobs = train(fleet)
            with launched() as browser:
                take(fleet, browser, jobs)
        finally:
            fleet.close()
    for picture in sorted(IMAGES.glob("*.png")):
        size = picture.stat().st_size
        print(f"{picture.name}: {size // 1000} kB")
        assert size < MOST_BYTES, picture


def train(fleet: Fleet) -> dict[str, str]:
    """Jobs of every kind; the one called `running` goes on while pictures are taken."""
    jobs = {"first": pushed(fleet, "digits", "Learn the digits")}
    fleet.wait_ended(jobs["first"], PATIENCE_S)
    jobs["wider"] = pushed(fleet, "digits", "Widen the hidden layer", ("hidden: 128", "hidden: 512"))
    fleet.wait_ended(jobs["wider"], PATIENCE_S)
    broken = ("def load_pictures():\n", 'def load_pictures():\n    open("pictures.csv")\n')
    jobs["failed"] = pushed(fleet, "forecast", "Read the measured series", broken)
    fleet.wait_ended(jobs["failed"], PATIENCE_S)
    gpu = ('nodes: "1:2"', "nodes: 1\n  gpu: 1")
    jobs["waiting"] = pushed(fleet, "llama-finetune", "Tune on one GPU", gpu)
    longer = (("epochs: 8", "epochs: 150"), ("learning_rate: 0.01", "learning_rate: 0.002"))
    jobs["running"] = pushed(fleet, "digits", "Learn slowly, for longer", *longer)
    return jobs


def pushed(fleet: Fleet, name: str, subject: str, *changes: tuple[str, str]) -> str:
    """The job of a commit that makes these changes to the template's files."""
    folder = fleet.root / name
    if not folder.exists():
        fleet.cli("init", str(folder), "--template", "digits")
    for file in (folder / "trainforge.yaml", folder / "train.py"):
        text = file.read_text()
        for before, after in changes:
            text = text.replace(before, after)
        file.write_text(text)
    known = {job["id"] for job in fleet.jobs()}
    fleet.git("commit", "--quiet", "--all", "--allow-empty", "--message", subject, cwd=folder)
    fleet.git("push", "trainforge", "main", cwd=folder)

    def made() -> str | None:
        return next((job["id"] for job in fleet.jobs() if job["id"] not in known), None)

    return wait_for(f"the job of {name}", made, 30)


def take(fleet: Fleet, browser: Any, jobs: dict[str, str]) -> None:
    page = browser.new_context(viewport={"width": WIDTH, "height": 400}).new_page()
    link = next(word for word in fleet.cli("user", "link", "admin").stdout.split() if "/login?" in word)
    page.goto(link)
    page.get_by_role("button", name="Log in").click()

    def picture(name: str, path: str, ready: Callable[[], Any], height: int = 0) -> None:
        page.goto(fleet.url + path)
        ready()
        page.mouse.move(0, 0)
        if height:
            page.set_viewport_size({"width": WIDTH, "height": height})
        page.screenshot(path=IMAGES / f"{name}.png", full_page=not height, animations="disabled")
        page.set_viewport_size({"width": WIDTH, "height": 400})

    def half_way() -> bool:
        progress = fleet.job(jobs["running"])["progress"]
        return progress is not None and progress > 0.4

    wait_for("half of a training", half_way, PATIENCE_S)
    picture("job", f"/jobs/{jobs['running']}", page.locator("canvas").first.wait_for, HEIGHT)
    picture("jobs", "/jobs", page.get_by_role("progressbar").first.wait_for)
    picture("failed", f"/jobs/{jobs['failed']}", page.get_by_text("failed first").first.wait_for, 640)
    both = f"/compare?jobs={jobs['first']}&jobs={jobs['wider']}"
    picture("compare", both, page.locator("canvas").first.wait_for)
    fleet.cli("stop", jobs["running"])
    fleet.wait_ended(jobs["running"], PATIENCE_S)


if __name__ == "__main__":
    main()
