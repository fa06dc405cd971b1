"""A ZIP is uploaded in a real browser, with and without its scripts, and its plan confirmed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.archives import zipped
from support.browser import check_looks, opened
from support.compat import gpu_machine
from support.web import Web


@pytest.mark.parametrize("scripts", [True, False])
def test_a_zip_is_uploaded_and_its_plan_confirmed(
    chromium: Any, site: Web, tmp_path: Path, *, scripts: bool
) -> None:
    gpu_machine(site, "alpha")
    archive = tmp_path / "my project.zip"
    archive.write_bytes(zipped({"project/main.py": "print(1)\n", "project/requirements.txt": ""}))
    with opened(chromium, site, java_script_enabled=scripts) as page:
        page.goto(f"{site.url}/new")
        chosen = page.get_by_label("ZIP file")
        if scripts:
            check_looks(page, "new-upload")
            chosen.evaluate("input => { input.dataset.most = 10; }")
            chosen.set_input_files(archive)
            assert "at most 0 are taken" in chosen.evaluate("input => input.validationMessage")
            chosen.set_input_files([])
            chosen.evaluate("input => { input.dataset.most = 10000; }")
        page.get_by_label("Name", exact=True).fill("My Training Job")
        page.get_by_label("Entry script").fill("main.py")
        page.get_by_label("Requirements file").fill("requirements.txt")
        chosen.set_input_files(archive)
        page.get_by_role("button", name="Upload and show the plan").click()
        page.get_by_role("heading", name="Plan for my-training-job").wait_for()
        page.get_by_text("The folder project around everything in the ZIP was taken off.").wait_for()
        assert site.get("/api/jobs")["jobs"] == []
        page.get_by_role("button", name="Train", exact=True).click()
        page.get_by_role("heading", name="my-training-job").wait_for()
    (job,) = site.get("/api/jobs")["jobs"]
    assert (job["source"], job["author"], job["subject"]) == (
        "upload", "ada", "Upload my project.zip for my-training-job",
    )  # fmt: skip
