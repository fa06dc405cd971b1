"""GPUs as NVIDIA's library lists them, through nvidia-ml-py. What a GPU does not tell stays unknown.

A GPU that is cut into slices (MIG) is listed as its slices, by their own UUIDs: the whole cannot be given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from trainforge.config.messages import Gpu
from trainforge.executor.gpu_health import Reading

# nvml.h: nvmlClocksEventReasonHwThermalSlowdown, nvmlClocksEventReasonHwPowerBrakeSlowdown
HOT, BRAKED = 0x40, 0x80
SENSOR, SLOWDOWN = 0, 1  # NVML_TEMPERATURE_GPU, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
UNCORRECTED, VOLATILE = 1, 0  # NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC
LOST = "GPU is lost"
_seen: dict[int, Gpu] = {}  # by index, for when a GPU no longer tells who it is


@functools.cache
def library() -> Any:
    """nvidia-ml-py once it is ready; None on a machine without the driver's library."""
    import pynvml  # noqa: PLC0415 - it looks for the library

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


class Nvml:
    """Readings by one library, which a test may replace."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.driver = _text(self._ask(nvml.nvmlSystemGetDriverVersion, default=""))
        cuda = int(self._ask(nvml.nvmlSystemGetCudaDriverVersion, default=0))
        self.cuda = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""

    def readings(self) -> list[Reading]:
        found: list[Reading] = []
        for index in range(self._ask(self.nvml.nvmlDeviceGetCount, default=0)):
            try:
                found += self._device(index)
            except self.nvml.NVMLError as error:
                gpu = _seen.get(index) or Gpu(uuid=f"GPU-{index}", model="GPU", memory_bytes=0)
                lost = error.value == self.nvml.NVML_ERROR_GPU_IS_LOST
                found.append(Reading(gpu, lost=LOST if lost else str(error)))
        return found

    def _device(self, index: int) -> list[Reading]:
        nvml = self.nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        whole = self._one(handle)
        slices = []
        if next(iter(self._ask(nvml.nvmlDeviceGetMigMode, handle, default=(0,)))):
            for number in range(self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle, default=0)):
                part = self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number, default=None)
                if part is not None:
                    slices.append(self._one(part, whole))
            return slices  # none has been made: there is nothing to give
        _seen[index] = whole.gpu
        return [whole]

    def _one(self, handle: Any, whole: Reading | None = None) -> Reading:
        """A GPU, or a slice of `whole`, which is as healthy as that."""
        nvml, ask = self.nvml, self._ask
        memory = self._memory(handle)
        gpu = Gpu(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            model=_text(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(memory.total),
            driver=self.driver,
            cuda=self.cuda,
        )
        programs = ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle, default=None)
        reading = Reading(
            gpu,
            bus=whole.bus if whole else _text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower(),
            used_bytes=int(memory.used),
            programs=None if programs is None else len(programs),
        )
        if whole is not None:
            return reading.as_healthy_as(whole)
        rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle, default=None)
        slowed = int(ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle, default=0))
        remapped = ask(nvml.nvmlDeviceGetRemappedRows, handle, default=(0, 0, 0, 0))
        return replace(
            reading,
            percent=float(rates.gpu) if rates else 0.0,
            degrees=ask(nvml.nvmlDeviceGetTemperature, handle, SENSOR, default=None),
            too_hot=ask(nvml.nvmlDeviceGetTemperatureThreshold, handle, SLOWDOWN, default=None),
            hot=bool(slowed & HOT),
            braked=bool(slowed & BRAKED),
            uncorrected=int(ask(nvml.nvmlDeviceGetTotalEccErrors, handle, UNCORRECTED, VOLATILE, default=0)),
            pending=bool(remapped[2])
            or bool(ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle, default=0)),
            worn_out=bool(remapped[3]),
        )

    def _memory(self, handle: Any) -> Any:
        """Without what the driver keeps for itself, where it says how much that is."""
        try:
            return self.nvml.nvmlDeviceGetMemoryInfo(handle, self.nvml.nvmlMemory_v2)
        except (self.nvml.NVMLError, AttributeError):
            return self.nvml.nvmlDeviceGetMemoryInfo(handle)

    def _ask(self, function: Callable[..., Any], *arguments: Any, default: Any) -> Any:
        """What it says; the default where this GPU or driver has no such thing. A lost GPU is raised."""
        try:
            return function(*arguments)
        except self.nvml.NVMLError as error:
            if error.value == self.nvml.NVML_ERROR_GPU_IS_LOST:
                raise
            return default


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
