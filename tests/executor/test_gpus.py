"""GPUs: what is read of them, which are given to no job and why, who holds one, what a job used.

The readings are tables in the forms that nvidia-smi and NVML have them (drivers 535 to 580): these machines
have no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.executors import Project, ended, forgotten, joined, running
from support.sender_double import SenderDouble
from support.waiting import wait_for
from trainforge.config.errors import NodeFailed
from trainforge.config.messages import Gpu
from trainforge.executor import gpu_health, gpus, nvidia_smi, nvml
from trainforge.executor.gpu_health import Reading
from trainforge.executor.job_gpus import JobGpus
from trainforge.executor.nvml import Nvml

GIB = 2**30
BUS = "00000000:3B:00.0"
A100 = Reading(Gpu(uuid="GPU-a", model="NVIDIA A100", memory_bytes=80 * GIB), bus=BUS.lower(), programs=0)


def named(uuid: str) -> Reading:
    return replace(A100, gpu=A100.gpu.model_copy(update={"uuid": uuid}))


# --- health ---------------------------------------------------------------------------------------------

FELL = "[  5.1] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


@pytest.mark.parametrize(
    ("reading", "log", "said"),
    [
        (A100, "", ""),
        (replace(A100, degrees=70, too_hot=93, percent=100.0, programs=3), FELL, "off the bus"),
        (A100, "NVRM: Xid (PCI:0000:af:00): 79, GPU has fallen off the bus.", ""),
        (A100, "NVRM: Xid (0000:3b:00): 48, pid=1, DBE (double bit error)", "Xid 48"),
        (A100, "NVRM: Xid (PCI:0000:3b:00): 95, pid=12, name=python, Uncontained: SBE", "Xid 95"),
        (A100, "NVRM: Xid (PCI:0000:3b:00): 31, pid=12, name=python, Ch 00000008, MMU Fault", ""),
        (A100, "NVRM: Xid (PCI:0000:3b:00): 43, pid=12, name=python, Ch 00000008", ""),
        (A100, f"{FELL}\nNVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.65.06", ""),
        (replace(A100, uncorrected=1), "", "1 uncorrected memory error (ECC) since its driver"),
        (replace(A100, uncorrected=4), "", "4 uncorrected memory errors"),
        (replace(A100, pending=True), "", "replaced once it is reset"),
        (replace(A100, worn_out=True), "", "have it replaced"),
        (replace(A100, degrees=94.0, too_hot=93), "", "at 94 °C it slows itself down for heat"),
        (replace(A100, degrees=60.0, hot=True), "", "slows itself down for heat"),
        (replace(A100, braked=True), "", "power supply"),
        (replace(A100, lost="GPU is lost"), "", "restart the machine"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_gpu(reading: Reading, log: str, said: str) -> None:
    found = gpu_health.problem(reading, gpu_health.xids(log))
    assert said in found
    assert bool(found) is bool(said)


@pytest.mark.parametrize(
    ("used", "programs", "left"),
    [(20 * GIB, 0, True), (20 * GIB, 1, False), (20 * GIB, None, False), (GIB // 2, 0, False)],
)
def test_memory_that_nobody_uses_is_noticed(used: int, programs: int | None, left: bool) -> None:
    found = gpu_health.leftover(replace(A100, used_bytes=used, programs=programs))
    assert bool(found) is left
    assert not left or "20.0 GiB of its memory" in found


def test_it_has_to_stay_to_be_left_over(monkeypatch: pytest.MonkeyPatch, locks: Path) -> None:
    """A driver frees the memory of a job that has just ended a moment later."""
    now = time.monotonic()
    left = [replace(A100, used_bytes=20 * GIB)]
    monkeypatch.setattr(gpus.time, "monotonic", lambda: now)
    gpus.problems([A100], ())  # whatever another test has left
    assert gpus.problems(left, ()) == {"GPU-a": ""}
    now += gpus.SETTLE_S
    assert "left over by one that died" in gpus.problems(left, ())["GPU-a"]
    assert gpus.problems(left, {"GPU-a"}) == {"GPU-a": ""}
    assert "left over" in gpus.offered(left, ())[0].problem
    assert gpus.problems([A100], ()) == {"GPU-a": ""}
    assert gpus.problems(left, ()) == {"GPU-a": ""}
    gpus.problems([A100], ())


@pytest.mark.parametrize(
    ("chosen", "uuids"),
    [
        (None, ["GPU-a1", "GPU-b2", "MIG-c3"]), ("", []), ("1", ["GPU-b2"]),
        ("MIG-c3,GPU-a", ["MIG-c3", "GPU-a1"]),
        ("-1", []), ("7", []), ("GPU-z", []),
    ],
)  # fmt: skip
def test_only_what_is_visible_is_offered(chosen: str | None, uuids: list[str]) -> None:
    found = [named(uuid) for uuid in ("GPU-a1", "GPU-b2", "MIG-c3")]
    assert [one.gpu.uuid for one in gpus.visible(found, chosen)] == uuids


# --- nvidia-smi -----------------------------------------------------------------------------------------

FULL = (
    "GPU-a, NVIDIA A100, 81920, 550.54.15, 37, 1024, 00000000:3B:00.0, 41, 0, No, Not Active, Not Active\n"
    "GPU-b, NVIDIA A100, 81920, 550.54.15, [N/A], 20480, 00000000:AF:00.0, 91, 2, Yes, Active, Not Active\n"
)  # fmt: skip
SLICED = (
    "GPU 0: NVIDIA A100 80GB PCIe (UUID: GPU-a)\n"
    "  MIG 3g.40gb     Device  0: (UUID: MIG-1)\n"
    "  MIG 1g.10gb+me  Device  1: (UUID: MIG-2)\n"
    "GPU 1: NVIDIA A100 80GB PCIe (UUID: GPU-b)\n"
)
LOST = "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the system\n"


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, **answers: str) -> None:
    """A program of that name that answers by the first of these words in its arguments."""
    program = folder / "nvidia-smi"
    cases = []
    for word, text in answers.items():
        (folder / word).write_text(text)
        cases.append(f'case "$*" in *{word.replace("_", "-")}*) cat {folder / word}; exit;; esac')
    cases.append("echo 'Field is not a valid field to query.'; exit 2")
    program.write_text("\n".join(["#!/bin/sh", *cases, ""]))
    program.chmod(0o755)
    monkeypatch.setattr(nvml, "library", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_nvidia_smi_tells_of_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, thermal=FULL, compute_apps="GPU-a, 77\n")
    first, second = gpus.readings()
    assert (first.bus, first.percent, first.used_bytes, first.programs) == (BUS.lower(), 37.0, GIB, 1)
    assert (first.gpu.driver, first.degrees, first.hot, first.pending) == ("550.54.15", 41.0, False, False)
    assert (second.percent, second.uncorrected, second.hot, second.pending) == (0.0, 2, True, True)
    assert second.programs == 0


def test_an_older_nvidia_smi_tells_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "GPU-a, Tesla T4, 15360, 450.80.02, 0, 12000\n"
    smi(tmp_path, monkeypatch, query_gpu=plain)
    (one,) = nvidia_smi.readings()
    assert (one.gpu.memory_bytes, one.programs, gpu_health.problem(one, {})) == (15 * GIB, None, "")
    assert gpu_health.leftover(one) == ""


def test_slices_are_listed_by_their_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, thermal=FULL, _L=SLICED)
    found = gpus.readings()
    assert [one.gpu.uuid for one in found] == ["MIG-1", "MIG-2", "GPU-b"]
    assert [one.gpu.memory_bytes for one in found[:2]] == [40 * 10**9, 10 * 10**9]
    assert found[0].gpu.driver == "550.54.15"


def test_a_lost_gpu_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, query_gpu=LOST)
    (one,) = gpus.readings()
    assert "it does not answer (GPU is lost" in gpu_health.problem(one, {})


# --- NVML -----------------------------------------------------------------------------------------------


class Refused(Exception):  # noqa: N818 - stands for NVML's own
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class Library:
    """Stands for nvidia-ml-py: answers from a table, and what is not in it is not supported."""

    NVMLError = Refused
    NVML_ERROR_GPU_IS_LOST = 15
    nvmlMemory_v2 = 0x2000028  # noqa: N815

    def __init__(self, **table: Any) -> None:
        self.table = table

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            found = self.table.get(name, 3)
            found = found(*arguments) if callable(found) else found
            if isinstance(found, int) and not isinstance(found, bool) and name not in self.table:
                raise Refused(found)
            return found

        return call


def lost(*_: Any) -> None:
    raise Refused(15)


def card(**changes: Any) -> Library:
    table: dict[str, Any] = {
        "nvmlSystemGetDriverVersion": b"580.65.06", "nvmlSystemGetCudaDriverVersion": 13000,
        "nvmlDeviceGetCount": 1, "nvmlDeviceGetHandleByIndex": lambda index: f"gpu{index}",
        "nvmlDeviceGetUUID": "GPU-h", "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * GIB, used=2 * GIB),
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId=BUS.encode()),
        "nvmlDeviceGetMigMode": [0, 0], "nvmlDeviceGetComputeRunningProcesses": ["one", "two"],
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=88), "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetTemperatureThreshold": 92, "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4,
        "nvmlDeviceGetRemappedRows": (0, 0, 0, 0), "nvmlDeviceGetTotalEccErrors": 0,
    }  # fmt: skip
    return Library(**table | changes)


def test_the_library_tells_of_a_healthy_gpu() -> None:
    (one,) = Nvml(card()).readings()
    assert one.gpu == Gpu(
        uuid="GPU-h", model="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB, driver="580.65.06", cuda="13.0"
    )
    assert (one.bus, one.percent, one.used_bytes, one.programs, one.degrees) == (
        BUS.lower(),
        88,
        2 * GIB,
        2,
        61,
    )
    assert gpu_health.problem(one, {}) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nvmlDeviceGetTotalEccErrors": 3}, "3 uncorrected"),
        ({"nvmlDeviceGetRemappedRows": (0, 1, 1, 0)}, "once it is reset"),
        ({"nvmlDeviceGetRemappedRows": (0, 9, 0, 1)}, "worn out"),
        ({"nvmlDeviceGetRetiredPagesPendingStatus": 1}, "once it is reset"),
        ({"nvmlDeviceGetTemperature": 93}, "at 93 °C"),
        ({"nvmlDeviceGetCurrentClocksThrottleReasons": 0x48}, "heat"),
        ({"nvmlDeviceGetCurrentClocksThrottleReasons": 0x80}, "power supply"),
        ({"nvmlDeviceGetUUID": lost}, "it does not answer (GPU is lost)"),
        ({"nvmlDeviceGetTemperature": lost}, "it does not answer (GPU is lost)"),
    ],
)
def test_the_library_tells_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    (one,) = Nvml(card(**changes)).readings()
    assert said in gpu_health.problem(one, {})


def test_a_gpu_that_falls_off_the_bus_is_still_known() -> None:
    Nvml(card()).readings()
    (one,) = Nvml(card(nvmlDeviceGetHandleByIndex=lost)).readings()
    assert (one.gpu.uuid, one.gpu.memory_bytes, one.lost) == ("GPU-h", 80 * GIB, "GPU is lost")


def test_the_library_lists_slices() -> None:
    sizes = {"gpu0": 80 * GIB, "mig0": 40 * GIB, "mig1": 20 * GIB}

    def part(_: str, number: int) -> str:
        if number > 1:
            raise Refused(6)
        return f"mig{number}"

    library = card(
        nvmlDeviceGetMigMode=[1, 1],
        nvmlDeviceGetMaxMigDeviceCount=7,
        nvmlDeviceGetMigDeviceHandleByIndex=part,
        nvmlDeviceGetUUID=lambda handle: f"MIG-{handle}",
        nvmlDeviceGetMemoryInfo=lambda handle, *_: SimpleNamespace(total=sizes[handle], used=0),
        nvmlDeviceGetTotalEccErrors=1,
    )
    found = Nvml(library).readings()
    assert [one.gpu.uuid for one in found] == ["MIG-mig0", "MIG-mig1"]
    assert [one.gpu.memory_bytes for one in found] == [40 * GIB, 20 * GIB]
    assert "uncorrected" in gpu_health.problem(found[0], {})


# --- one holder -----------------------------------------------------------------------------------------


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setattr(gpus, "FOLDERS", (folder,))
    return folder


def job(folder: Path, *uuids: str) -> JobGpus:
    folder.mkdir(exist_ok=True)
    return JobGpus(uuids, folder / "gpus.json")


def test_a_gpu_has_one_holder(locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [A100, named("GPU-b")]
    monkeypatch.setattr(gpus, "readings", lambda: both)
    monkeypatch.setattr("trainforge.executor.job_gpus.PATIENCE_S", 0.1)
    first, second = job(tmp_path / "1", "GPU-a", "GPU-b"), job(tmp_path / "2", "GPU-b")
    first.take()
    first.take()
    assert gpus.taken("GPU-b")
    assert "another job" in gpus.problems(both, ())["GPU-b"]
    assert gpus.problems(both, {"GPU-a", "GPU-b"}) == {"GPU-a": "", "GPU-b": ""}
    with pytest.raises(NodeFailed, match="GPU-b: another job") as failed:
        second.take()
    assert failed.value.code == "gpu_unavailable"
    assert second.held == {}
    first.release()
    second.take()
    second.release()


def test_where_no_lock_can_be_had_the_planner_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "FOLDERS", (Path("/proc/nowhere"),))
    descriptor = gpus.hold("GPU-a", 0.1)
    assert descriptor is not None
    os.close(descriptor)
    assert not gpus.taken("GPU-a")


@pytest.mark.parametrize(
    ("uuid", "said"), [("GPU-a", "slows itself down"), ("GPU-gone", "this machine has it no more")]
)
def test_an_unwell_gpu_is_not_given(
    locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uuid: str, said: str
) -> None:
    monkeypatch.setattr(gpus, "readings", lambda: [replace(A100, hot=True)])
    wanting = job(tmp_path, uuid)
    with pytest.raises(NodeFailed, match=said):
        wanting.take()
    assert not gpus.taken(uuid)


HOLDER = """
import os, sys
from trainforge.executor.supervise import Supervised
from trainforge.executor import gpus
from pathlib import Path
gpus.FOLDERS = (Path(sys.argv[1]),)
held = gpus.hold("GPU-a")
supervised = Supervised(Path(sys.argv[2]))
supervised.start(held=[held])
"""


def test_the_supervisor_holds_it_when_its_executor_has_died(locks: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "ranks").mkdir()
    stop = tmp_path / "stop"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(stop)!r}).exists(): time.sleep(0.02)"
    spec = {"commands": [{"argv": [sys.executable, "-c", wait], "env": {}}], "cwd": str(tmp_path)}
    (run / "spec.json").write_text(json.dumps(spec))
    subprocess.run([sys.executable, "-c", HOLDER, str(locks), str(run)], check=True, env=os.environ)
    wait_for("the supervisor", (run / "supervisor.json").exists, 20)
    assert gpus.taken("GPU-a")
    stop.touch()
    wait_for("its end", lambda: not gpus.taken("GPU-a"), 20)


# --- use ------------------------------------------------------------------------------------------------


def test_what_a_job_used_is_counted_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([(20.0, 4 * GIB), (100.0, 8 * GIB), (60.0, 6 * GIB)])

    def read() -> list[Reading]:
        percent, used = next(found)
        return [replace(A100, percent=percent, used_bytes=used), named("GPU-other")]

    monkeypatch.setattr(gpus, "readings", read)
    monkeypatch.setattr("trainforge.executor.job_gpus.SAMPLE_S", 0.0)
    monkeypatch.setattr("trainforge.executor.job_gpus.SPARE", 0)
    first = job(tmp_path, "GPU-a")
    first.sample()
    first.sample()
    again = job(tmp_path, "GPU-a")
    again.sample()
    (used,) = again.used()
    assert (used.uuid, used.mean_percent, used.peak_percent) == ("GPU-a", 60.0, 100.0)
    assert (used.mean_memory_bytes, used.peak_memory_bytes) == (6 * GIB, 8 * GIB)
    assert job(tmp_path / "none").used() == []


# --- a job ----------------------------------------------------------------------------------------------

SEEN = "import os\nprint('sees', os.environ['CUDA_VISIBLE_DEVICES'])\n"
MANIFEST = "project: {name: t}\ntraining: {script: t.py, launcher: python}\nresources: {gpu: 1}\n"


def test_a_job_has_the_gpu_that_it_was_given(
    locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, double: SenderDouble
) -> None:
    """A slice keeps its name, the result says what it was used for; an unwell one is given to nobody."""
    well, hot = replace(named("MIG-1"), percent=40.0, used_bytes=GIB), replace(named("GPU-hot"), hot=True)
    monkeypatch.setattr(gpus, "readings", lambda: [well, hot])
    project = Project(tmp_path, {"trainforge.yaml": MANIFEST, "t.py": SEEN})
    chosen, executor = joined(double, tmp_path / "m", max_jobs=2)
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order(gpus=["MIG-1"]))
        (other,) = double.run(project.job("2"), [executor], project.order(gpus=["GPU-hot"]))
        assert ended(other)["code"] == "gpu_unavailable"
        assert "slows itself down" in other.last("ended")["reason"]
        used = ended(node)["gpus"]
        forgotten(chosen, node)
    assert "sees MIG-1" in "".join(log["text"] for log in node.data("log"))
    assert (used[0]["uuid"], used[0]["peak_percent"]) == ("MIG-1", 40.0)
    results = {path.rpartition("/")[2]: text for path, text in project.results().items()}
    machine, about = json.loads(results["machine.json"]), json.loads(results["environment.json"])
    assert [gpu["uuid"] for gpu in machine["gpus"]] == ["MIG-1"]
    assert machine["cpu"]
    assert about["version"].startswith("3.")
    assert not gpus.taken("MIG-1")
