"""Which devices this machine has, and the environment that shows a process exactly one of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comfyfleet.errors import FleetError, InputError

#: Asked in a process of its own: torch would otherwise open a context on each device of ours.
_PROBE = """
import json, torch
def gpus(api, kind):
    for i in range(api.device_count()):
        p = api.get_device_properties(i)
        yield {"kind": kind, "index": i, "name": p.name, "memory_bytes": p.total_memory,
               "uuid": str(getattr(p, "uuid", "") or "")}
found = []
if torch.cuda.is_available():
    found += gpus(torch.cuda, "rocm" if torch.version.hip else "cuda")
if hasattr(torch, "xpu") and torch.xpu.is_available():
    found += gpus(torch.xpu, "xpu")
if torch.backends.mps.is_available():
    found.append({"kind": "mps", "index": 0, "name": "Apple GPU", "memory_bytes": 0, "uuid": ""})
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device as torch numbers it under the environment that this process inherited."""

    kind: str  # cuda, rocm, xpu, mps or cpu
    index: int = 0
    name: str = ""
    memory_bytes: int = 0
    uuid: str = ""

    @property
    def id(self) -> str:
        """How torch and ComfyUI call it: cuda:1 (for ROCm too), xpu:0, mps, cpu."""
        if self.kind in ("cpu", "mps"):
            return self.kind
        return f"{'cuda' if self.kind == 'rocm' else self.kind}:{self.index}"


def cpu_device() -> Device:
    return Device(kind="cpu", name=f"CPU, {os.cpu_count() or 1} cores")


def find_devices() -> list[Device]:
    """All accelerators, in torch's order, then the CPU. Takes about as long as importing torch."""
    answer = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False
    )
    if answer.returncode != 0:
        raise FleetError(
            f"could not ask torch for the devices with {sys.executable}; it needs ComfyUI's "
            f"requirements installed. Its last words: {answer.stderr.strip()[-500:]}"
        )
    return [Device(**entry) for entry in json.loads(answer.stdout)] + [cpu_device()]


def choose_devices(
    request: str, devices: Sequence[Device], taken: Sequence[str] = ()
) -> list[Device]:
    """The devices that get a worker.

    ``request`` is "auto" (every accelerator that is not in ``taken``), a number (that many
    devices, CPU workers where accelerators run out) or a list of ids such as "cuda:0,cuda:1" or
    "cpu,cpu". Raises InputError for anything else, naming what there is.
    """
    free = [device for device in devices if device.kind != "cpu" and device.id not in taken]
    if request == "auto":
        return free
    if re.fullmatch(r"[+-]?[0-9]{1,9}", request):
        return _counted(int(request), free)
    by_id = {device.id: device for device in devices}
    names = [name.strip() for name in request.split(",")]
    unknown = [name for name in names if name not in by_id]
    if unknown:
        raise InputError(
            f"no device {', '.join(repr(name) for name in unknown)} here; there is "
            f"{', '.join(by_id)}. Give auto, a number of workers, or a list of these."
        )
    return [by_id[name] for name in names]


def _counted(count: int, free: Sequence[Device]) -> list[Device]:
    if not 0 <= count <= 256:
        raise InputError(f"{count} workers: give a number from 0 to 256.")
    if len(free) >= count:
        return list(free[:count])
    if free:
        raise InputError(
            f"{count} workers, but only {len(free)} free devices: "
            f"{', '.join(device.id for device in free)}. Name devices to put several workers on "
            "one of them or on the CPU, such as cuda:0,cuda:0,cpu."
        )
    return [cpu_device()] * count


def device_environment(
    device: Device, inherited: Mapping[str, str], cpu_threads: int
) -> dict[str, str | None]:
    """Variables to set (None: to remove) so that a process sees this device alone, as number 0.

    CUDA and ROCm devices are named by UUID, which holds under any order and any inherited mask.
    A number of threads that the owner chose stays; else CPU workers share the cores, as more
    threads than cores would only make them wait for each other.
    """
    threads = str(cpu_threads) if device.kind == "cpu" else None
    shown = _shown_alone(device, inherited)
    return {"OMP_NUM_THREADS": inherited.get("OMP_NUM_THREADS", threads), **shown}


def _shown_alone(device: Device, inherited: Mapping[str, str]) -> dict[str, str | None]:
    if device.kind == "cuda":
        return {"CUDA_VISIBLE_DEVICES": _cuda_name(device, inherited)}
    if device.kind == "rocm":
        return _rocm(device, inherited)
    if device.kind == "xpu":
        return {"ZE_AFFINITY_MASK": _masked(device, inherited, "ZE_AFFINITY_MASK")}
    if device.kind == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {}


def _cuda_name(device: Device, inherited: Mapping[str, str]) -> str:
    masked = _masked(device, inherited, "CUDA_VISIBLE_DEVICES")
    # torch gives the UUID of a MIG slice without its MIG- prefix, so the inherited name is better.
    if masked.startswith("MIG-") or not device.uuid:
        return masked
    return device.uuid if device.uuid.startswith("GPU-") else f"GPU-{device.uuid}"


def _rocm(device: Device, inherited: Mapping[str, str]) -> dict[str, str | None]:
    unique_id = _hip_unique_id(device.uuid)
    if unique_id is None:
        # HIP looks at CUDA's mask when it has none of its own.
        vendor = "HIP" if "HIP_VISIBLE_DEVICES" in inherited else "CUDA"
        name = _masked(device, inherited, f"{vendor}_VISIBLE_DEVICES")
        return {"HIP_VISIBLE_DEVICES": name, "CUDA_VISIBLE_DEVICES": None}
    # ROCr applies its mask before HIP does: an index inherited for HIP would not fit any more.
    rest: dict[str, str | None] = {"HIP_VISIBLE_DEVICES": None, "CUDA_VISIBLE_DEVICES": None}
    return {"ROCR_VISIBLE_DEVICES": f"GPU-{unique_id}", **rest}


def _hip_unique_id(uuid: str) -> str | None:
    """HIP's 16 UUID bytes are the ASCII digits of the id; torch prints these bytes in hex."""
    try:
        text = bytes.fromhex(uuid.replace("-", "")).decode("ascii")
        int(text, 16)
    except ValueError:
        return None
    return text


def _masked(device: Device, inherited: Mapping[str, str], variable: str) -> str:
    names = (name.strip() for name in inherited.get(variable, "").split(","))
    entries = [name for name in names if name]
    return entries[device.index] if device.index < len(entries) else str(device.index)
