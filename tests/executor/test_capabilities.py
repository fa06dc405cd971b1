"""What a machine says of itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from trainforge.config.settings import ExecutorSettings
from trainforge.executor import capabilities, nvml
from trainforge.executor.capabilities import own_capabilities


def test_the_settings_say_what_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-02:00")  # POSIX counts the other way round: two hours ahead
    time.tzset()
    try:
        settings = ExecutorSettings(
            data_dir=tmp_path, labels={"zone": "lab"}, max_jobs=3, available="Mon-Fri 18:00-08:00"
        )
        has = own_capabilities(settings)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert (has.labels, has.max_jobs, has.available) == ({"zone": "lab"}, 3, "Mon-Fri 18:00-08:00")
    assert has.utc_offset == 7200
    assert has.cpu_count >= 1


def test_what_its_owner_keeps_back_is_not_offered(tmp_path: Path) -> None:
    all_of_it = own_capabilities(ExecutorSettings(data_dir=tmp_path))
    part = own_capabilities(ExecutorSettings(data_dir=tmp_path, max_memory_gb=1.5, max_cpu_percent=60))
    assert part.memory_bytes == 1_500_000_000
    assert part.cpu_count == max(1, int(all_of_it.cpu_count * 0.6))
    least = own_capabilities(ExecutorSettings(data_dir=tmp_path, max_cpu_percent=1))
    assert least.cpu_count == 1


def test_gpus_are_told_with_what_is_wrong_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    lines = "GPU-a, A100, 81920, 550.54, 37, 1024, 0:3B:00.0, 41, 0, No, Not Active, Not Active\\n"
    lines += "GPU-b, A100, 81920, 550.54, [N/A], 0, 0:AF:00.0, 41, 2, No, Not Active, Not Active"
    program.write_text(f"#!/bin/sh\nprintf '{lines}\\n'\n")
    program.chmod(0o755)
    monkeypatch.setattr(nvml, "library", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    settings = ExecutorSettings(data_dir=tmp_path)
    first, second = own_capabilities(settings).gpus
    assert (first.uuid, first.model, first.memory_bytes) == ("GPU-a", "A100", 80 * 2**30)
    assert (first.problem, second.problem[:26]) == ("", "2 uncorrected memory error")
    said = capabilities.load(settings, {"GPU-a"})
    assert (said.gpu_percent, said.gpu_memory_bytes) == ([37.0, 0.0], [2**30, 0])
    assert said.gpu_others_bytes == [0, 0]  # what a job's own GPU holds is not that of others
    assert capabilities.load(settings).gpu_others_bytes == [2**30, 0]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert own_capabilities(settings).gpus == []
