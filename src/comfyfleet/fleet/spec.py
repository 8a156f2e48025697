"""What a worker process needs to know before it starts, and how to make one per device."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from comfyfleet.config import WORKER_MARK
from comfyfleet.planner import Device, device_environment

#: Flags of ComfyUI that belong to one process (its address, window, device, own files) and how
#: many values each takes. Everything else, known to us or not, is inherited by the workers.
_OWN_FLAGS: dict[str, str | int] = {
    "--listen": "?",
    "--port": 1,
    "--tls-keyfile": 1,
    "--tls-certfile": 1,
    "--enable-cors-header": "?",
    "--auto-launch": 0,
    "--disable-auto-launch": 0,
    "--windows-standalone-build": 0,
    "--quick-test-for-ci": 0,
    "--cuda-device": 1,
    "--default-device": 1,
    "--oneapi-device-selector": 1,
    "--cpu": 0,
    "--temp-directory": 1,
    "--database-url": 1,
    "--enable-manager": 0,
    "--enable-manager-legacy-ui": 0,
    "--disable-manager-ui": 0,
    # Each worker would scan, and hash, all models into a database of its own.
    "--enable-assets": 0,
    "--enable-asset-hashing": 0,
}

#: Where a worker's output nodes save, in its own folder.
_OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The ComfyUI that workers copy: where it lies, its flags, and where they are relative to."""

    comfyui: Path
    flags: tuple[str, ...] = ()
    cwd: Path
    #: Where the owner's own ComfyUI answers, if it is one.
    url: str = ""
    #: Where the workers' logs are kept; None: in their own folders, which go with the fleet.
    logs: Path | None = None
    #: The owner's input, output and temp folders, in which prompts name files.
    folders: Mapping[str, Path] = field(default_factory=dict)
    #: The owner's folders of models.
    models: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """Everything that one worker's process is started with."""

    id: str
    device: Device
    host: Host
    flags: tuple[str, ...]
    environment: Mapping[str, str | None]
    #: Its own: output nodes save there, and the fleet takes the files.
    folder: Path
    pack: Path

    @property
    def output_folder(self) -> Path:
        return self.folder / _OUTPUT

    @property
    def log_file(self) -> Path:
        logs = self.host.logs
        return self.folder / "comfyui.log" if logs is None else log_file(logs, self.id)


def log_file(logs: Path, worker_id: str) -> Path:
    """The log of a worker whose owner keeps logs."""
    return logs / f"{worker_id}.log"


def inherited_flags(flags: Sequence[str]) -> list[str]:
    """The flags of a master that its workers take over, in their order and as they were given."""
    # Abbreviations as ComfyUI itself takes them: no flag of its others begins one of these.
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=True)
    for name, values in _OWN_FLAGS.items():
        if values == 0:
            own.add_argument(name, action="store_true")
        else:
            own.add_argument(name, nargs=None if values == 1 else "?")
    return own.parse_known_args(list(flags))[1]


def worker_id(device: Device, number: int) -> str:
    """A name that says the device: cuda1, cpu-0; ``number`` counts workers on equal devices."""
    stem = device.id.replace(":", "")
    return stem if number == 0 and device.kind != "cpu" else f"{stem}-{number}"


def worker_specs(
    devices: Sequence[Device],
    host: Host,
    *,
    folder_of: Mapping[str, Path],
    pack: Path,
) -> list[WorkerSpec]:
    """One spec per device, in order; ``folder_of`` gives each worker id its own folder."""
    threads = max(1, (os.cpu_count() or 1) // max(1, sum(d.kind == "cpu" for d in devices)))
    return [
        WorkerSpec(
            id=name,
            device=device,
            host=host,
            flags=worker_flags(device, host, folder_of[name]),
            environment={
                WORKER_MARK: name,
                **device_environment(device, os.environ, threads),
            },
            folder=folder_of[name],
            pack=pack,
        )
        for name, device in zip(worker_ids(devices), devices, strict=True)
    ]


def worker_ids(devices: Sequence[Device]) -> list[str]:
    """Names for workers on these devices, all different."""
    seen: dict[str, int] = {}
    names = []
    for device in devices:
        number = seen.get(device.id, 0)
        seen[device.id] = number + 1
        names.append(worker_id(device, number))
    return names


#: ComfyUI's choice of how to use a GPU's memory; --cpu is one of the same group.
_GPU_MEMORY_FLAGS = {"--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram"}


def worker_flags(device: Device, host: Host, folder: Path) -> tuple[str, ...]:
    """The flags of a worker's ComfyUI: the host's, with device and files of its own."""
    flags = [*inherited_flags(host.flags), "--disable-auto-launch"]
    flags += ["--temp-directory", str(folder)]
    flags += ["--database-url", f"sqlite:///{folder / 'comfyui.db'}"]
    if device.kind == "cpu":
        flags = [flag for flag in flags if flag not in _GPU_MEMORY_FLAGS] + ["--cpu"]
    return (*flags, "--output-directory", str(folder / _OUTPUT))
