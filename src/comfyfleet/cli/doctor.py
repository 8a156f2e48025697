"""``comfyfleet doctor``: what is installed, which devices there are, what would start."""

from __future__ import annotations

import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

from comfyfleet.cli.run import devices_for
from comfyfleet.cli.show import console
from comfyfleet.cli.status import print_json
from comfyfleet.config import find_comfyui
from comfyfleet.fleet import spec
from comfyfleet.planner import find_devices

_PACKAGES = ("comfyfleet", "ray", "torch", "torchvision", "torchaudio", "aiohttp", "numpy")


def show_doctor(*, workers: str, comfyui: str | None, as_json: bool) -> None:
    """Print it all. Raises InputError or FleetError for what would also stop a run."""
    devices = find_devices()
    chosen = devices_for(workers)
    host = find_comfyui(comfyui)
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
        "comfyui": {"path": str(host), "version": _comfyui_version(host)},
        "devices": [{"id": device.id, **asdict(device)} for device in devices],
        "would_start": dict(zip(spec.worker_ids(chosen), (d.id for d in chosen), strict=True)),
    }
    if as_json:
        print_json(report)
        return
    _show(report)


def _show(report: dict[str, Any]) -> None:
    table = Table("what", "found", title="ComfyFleet doctor")
    table.add_row("python", report["python"])
    for name, found in report["packages"].items():
        table.add_row(name, found or "not installed")
    table.add_row("ComfyUI", f"{report['comfyui']['version']} in {report['comfyui']['path']}")
    for device in report["devices"]:
        memory = device["memory_bytes"] / 1024**3
        size = f", {memory:.0f} GiB" if memory else ""
        table.add_row(f"device {device['id']}", f"{device['name']}{size}")
    for worker_id, device_id in report["would_start"].items():
        table.add_row(f"worker {worker_id}", f"would start on {device_id}")
    console.print(table)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _comfyui_version(host: Path) -> str:
    text = (host / "comfyui_version.py").read_text(encoding="utf-8")
    return text.partition("__version__")[2].strip(' ="\n')
