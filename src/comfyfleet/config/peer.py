"""What a ``gpu_config.json`` of ComfyUI-Distributed becomes here, and what of it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from comfyfleet.config.document import read_text, validate
from comfyfleet.config.editing import append_worker, edit, room
from comfyfleet.config.schema import TAKEN, WorkerEntry, worker_entry
from comfyfleet.errors import InputError

#: What happens to the peer's settings that have no equal.
_SETTINGS_LEFT = {
    "debug": "ComfyUI's own --verbose says more",
    "auto_launch_workers": "workers start when they are first needed, or with `share: true`",
    "stop_workers_on_master_exit": "workers always end with their master",
    "websocket_orchestration": "there is one way only",
    "worker_probe_concurrency": "needs no setting",
    "worker_prep_concurrency": "needs no setting",
    "media_sync_concurrency": "needs no setting",
    "media_sync_timeout_seconds": "needs no setting",
    "worker_timeout_seconds": "a worker is late when it is so against its own speed",
    "has_auto_populated_workers": "a note of that pack to itself",
}
_ROOMS_LEFT = {
    "tunnel": "the state of a tunnel that has ended",
    "managed_processes": "processes of that pack",
}
_MASTER_LEFT = {
    "host": "workers need no way to the master",
    "port": "ComfyUI's own --port says it",
    "name": "the master is called master",
    "cuda_device": "give ComfyUI --cuda-device",
    "extra_args": "start ComfyUI with them",
}
_WORKER_KEYS = ("id", "name", "host", "port", "cuda_device", "enabled", "extra_args", "type")
_UNKNOWN = "is not known here"
_FLAGS = "start that ComfyUI with them"


@dataclass(slots=True, kw_only=True)
class Import:
    """What becomes of a file of the peer."""

    workers: list[WorkerEntry] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    #: What is not taken over, each with the reason.
    left: list[str] = field(default_factory=list)


def import_file(path: Path, source: Path) -> Import:
    """Take over what a ``gpu_config.json`` says into the fleet.yaml at ``path``; what was done.

    Raises InputError if the source is no such file.
    """
    data = _read(source)
    done = Import()

    def change(target: CommentedMap) -> None:
        nonlocal done
        done = plan_import(data, validate(target, path).workers)
        for entry in done.workers:
            append_worker(target, entry.model_dump(exclude_defaults=True))
        if done.settings:
            _set(room(target, "settings", CommentedMap), done)

    edit(path, change)
    return done


def _set(settings: CommentedMap, done: Import) -> None:
    for key, value in done.settings.items():
        if settings.get(key) not in (None, value):
            done.left.append(f"settings.{key} of fleet.yaml was {settings[key]!r} before")
        settings[key] = value


def plan_import(data: Mapping[str, Any], present: Sequence[WorkerEntry] = ()) -> Import:
    """What is taken over from the peer's data into a file that has these workers already."""
    done = Import()
    _take_settings(done, data.get("settings") or {})
    local = _take_workers(done, data.get("workers") or [], present)
    if local:
        done.settings["workers"] = ",".join(local)
    _leave(done, "master", data.get("master") or {}, _MASTER_LEFT)
    rest = {key: data[key] for key in data if key not in ("settings", "workers", "master")}
    _leave(done, "", rest, _ROOMS_LEFT)
    return done


def _read(source: Path) -> dict[str, Any]:
    if not source.is_file():
        raise InputError(f"{source} is no file; give the gpu_config.json of ComfyUI-Distributed.")
    try:
        data = json.loads(read_text(source))
    except json.JSONDecodeError as error:
        raise InputError(f"{source}, line {error.lineno}: is no JSON: {error.msg}.") from None
    except RecursionError:
        raise InputError(f"{source} is nested too deeply for a gpu_config.json.") from None
    kinds = {"master": dict, "workers": list, "settings": dict}
    if not isinstance(data, dict) or not kinds.keys() & data.keys():
        raise InputError(f"{source} is no gpu_config.json: it has none of {', '.join(kinds)}.")
    wrong = [key for key, kind in kinds.items() if not isinstance(data.get(key) or kind(), kind)]
    if wrong:
        raise InputError(f"{source} is no gpu_config.json: its {wrong[0]} has another form.")
    return data


def _take_settings(done: Import, settings: Mapping[str, Any]) -> None:
    delegate = settings.get("master_delegate_only")
    if isinstance(delegate, bool):
        done.settings["master"] = not delegate
        settings = {key: settings[key] for key in settings if key != "master_delegate_only"}
    _leave(done, "settings", settings, _SETTINGS_LEFT)


def _leave(done: Import, room: str, found: Mapping[str, Any], why: Mapping[str, str]) -> None:
    for key, value in found.items():
        if value in ("", None):
            continue
        name = f"{room}.{key}" if room else key
        # Of what is not known the value is not shown either: it may be a secret.
        shown = f" ({value})" if key in why and isinstance(value, (str, int, float)) else ""
        done.left.append(f"{name}{shown}: {why.get(key, _UNKNOWN)}")


def _take_workers(
    done: Import, workers: Iterable[Any], present: Sequence[WorkerEntry]
) -> list[str]:
    """Fill in those on the network; the devices of those on the peer's own machine."""
    local: list[str] = []
    for number, worker in enumerate(workers):
        if not isinstance(worker, dict):
            done.left.append(f"workers[{number}]: is no worker")
            continue
        name = str(worker.get("name") or worker.get("id") or number)
        _leave_parts(done, name, worker)
        if _is_local(worker):
            local += _device(done, name, worker)
        else:
            _take_remote(done, name, worker, [*present, *done.workers])
    return local


def _leave_parts(done: Import, name: str, worker: Mapping[str, Any]) -> None:
    if worker.get("extra_args"):
        done.left.append(f"worker {name}: extra_args ({worker['extra_args']}): {_FLAGS}")
    for key in worker:
        if key not in _WORKER_KEYS:
            done.left.append(f"worker {name}: {key}: {_UNKNOWN}")


def _is_local(worker: Mapping[str, Any]) -> bool:
    if "type" in worker:
        return bool(worker["type"] == "local")
    return str(worker.get("host") or "").lower() in ("", "localhost", "127.0.0.1", "0.0.0.0")


def _device(done: Import, name: str, worker: Mapping[str, Any]) -> list[str]:
    device = str(worker.get("cuda_device"))
    if not worker.get("enabled", True):
        done.left.append(f"worker {name}: is switched off; its cuda_device is {device}")
    elif not re.fullmatch("[0-9]{1,3}", device):
        done.left.append(f"worker {name}: has no cuda_device; add its device to `workers` yourself")
    else:
        return [f"cuda:{device}"]
    return []


def _take_remote(
    done: Import, name: str, worker: Mapping[str, Any], known: Sequence[WorkerEntry]
) -> None:
    free = _free_name(name, {entry.name for entry in known})
    enabled = worker.get("enabled", True)
    try:
        entry = worker_entry({"name": free, "url": _url(worker), "enabled": enabled})
    except InputError as error:
        done.left += [f"worker {name}: {line}" for line in str(error).splitlines()]
        return
    same = [each.name for each in known if each.url == entry.url]
    if same:
        done.left.append(f"worker {name}: {entry.url} is there as {same[0]}")
    else:
        done.workers.append(entry)


def _url(worker: Mapping[str, Any]) -> str:
    host, port = str(worker.get("host") or "").strip().rstrip("/"), str(worker.get("port") or "")
    if "://" not in host:
        secure = worker.get("type") == "cloud" or port == "443"
        host = f"{'https' if secure else 'http'}://{host}"
    usual = "443" if host.startswith("https:") else "80"
    return host if port in ("", usual) or re.search(r":[0-9]+$", host) else f"{host}:{port}"


def _free_name(name: str, taken: set[str]) -> str:
    """A name near to this one that is allowed, and that no worker has."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:50]
    if not stem or TAKEN.fullmatch(stem):
        stem = f"worker-{stem}".rstrip("-")
    numbered = (f"{stem}-{number}" for number in range(2, len(taken) + 3))
    return next(each for each in (stem, *numbered) if each not in taken)
