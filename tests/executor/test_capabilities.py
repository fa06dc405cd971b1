"""What a machine says of itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from trainforge.config.settings import ExecutorSettings
from trainforge.executor import capabilities
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


def test_gpus_are_listed_by_nvidia_smi_where_the_library_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    lines = (
        "GPU-a, NVIDIA A100 80GB, 81920, 550.54, 37, 1024\\nGPU-b, NVIDIA A100 80GB, 81920, 550.54, [N/A], 0"
    )
    program.write_text(f"#!/bin/sh\nprintf '{lines}\\n'\n")
    program.chmod(0o755)
    monkeypatch.setattr(capabilities, "_nvml", lambda: False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    first, _ = own_capabilities(ExecutorSettings(data_dir=tmp_path)).gpus
    assert (first.uuid, first.model, first.memory_bytes) == ("GPU-a", "NVIDIA A100 80GB", 80 * 2**30)
    said = capabilities.load(ExecutorSettings(data_dir=tmp_path))
    assert (said.gpu_percent, said.gpu_memory_bytes) == ([37.0, 0.0], [2**30, 0])
    program.write_text("#!/bin/sh\nexit 9\n")
    assert own_capabilities(ExecutorSettings(data_dir=tmp_path)).gpus == []


def test_memory_on_a_jobs_own_gpu_is_not_that_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = (["GPU-a", "GPU-b"], [90.0, 5.0], [20 * 2**30, 2**30])
    monkeypatch.setattr(capabilities, "_gpu_load", lambda: used)  # these machines have none
    said = capabilities.load(ExecutorSettings(data_dir=tmp_path), {"GPU-a"})
    assert said.gpu_memory_bytes == [20 * 2**30, 2**30]
    assert said.gpu_others_bytes == [0, 2**30]
