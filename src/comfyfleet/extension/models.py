"""Routes for models: who has which, copies to workers elsewhere, and copies that come here."""

from __future__ import annotations

import asyncio
import atexit
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web
from comfy_api.latest import io

from comfyfleet.api import models as routes
from comfyfleet.client.background import in_background
from comfyfleet.client.digests import Digests
from comfyfleet.client.inventory import Inventory, Need
from comfyfleet.client.models import find_elsewhere, read_piece
from comfyfleet.client.preflight import Look, look_at_all
from comfyfleet.comfy import inventory, models
from comfyfleet.comfy.intake import Incoming, Intake
from comfyfleet.config import ACCEPT_MODELS, Remote
from comfyfleet.errors import AccessError, InputError
from comfyfleet.extension.access import serve
from comfyfleet.extension.answers import Call, NotFound
from comfyfleet.extension.master import master
from comfyfleet.extension.nodes import LEGACY_NODES, NODES
from comfyfleet.extension.owner import owner_folder, read_config
from comfyfleet.fleet import MASTER
from comfyfleet.fleet.copies import Copies, Model
from comfyfleet.fleet.remote import endpoint_of
from comfyfleet.graph import find_files, is_weights_file, parse_prompt, strings_in
from comfyfleet.work import Prompt

logger = logging.getLogger(__name__)

_DIGESTS_FILE = "digests.json"

_digests: Digests | None = None
_intake: Intake | None = None
_copies: Copies | None = None
#: One check asks all workers for all that they have.
_checking = asyncio.Lock()


def install() -> None:
    """Add the routes; before ComfyUI's server starts."""
    serve(routes.LISTED, _listed)
    serve(routes.PART, _part)
    serve(routes.PART_ADD, _add)
    serve(routes.SOURCE, _source)
    serve(routes.BYTES, _bytes)
    serve(routes.CHECK, _check)
    serve(routes.COPY, _copy)
    serve(routes.COPIES, _shown)
    serve(routes.CANCEL_COPY, _cancel)


# What comes from others.


async def _listed(_call: Call) -> dict[str, Any]:
    return {
        "accepts": await asyncio.to_thread(_accepts),
        "models": await asyncio.to_thread(_own_models),
    }


async def _part(call: Call) -> dict[str, Any]:
    return await _intake_here().state(await asyncio.to_thread(_incoming, call))


async def _add(call: Call) -> dict[str, Any]:
    wanted = await asyncio.to_thread(_incoming, call)
    return await _intake_here().add(wanted, call["start"], await call.body())


def _incoming(call: Call) -> Incoming:
    if not _accepts():
        raise AccessError(
            403,
            "models are not accepted here: its owner has to set accept_models to true there, below "
            "settings in fleet.yaml (comfyfleet config set accept_models true).",
        )
    path = models.destination(call["folder"], call["file"])
    return Incoming(path=path, size=call["size"], sha256=call["sha256"])


def _accepts() -> bool:
    return read_config().value(ACCEPT_MODELS)


def _own_models() -> list[dict[str, Any]]:
    return [
        {
            "folder": each.folder,
            "file": each.name,
            "size": each.path.stat().st_size,
            "sha256": _digests_here().known(each.path),
        }
        for each in models.listed()
        if each.path.is_file()
    ]


# What goes to others.

#: Models that are read as a whole, for their digests.
_reading: dict[Path, asyncio.Task[str]] = {}


async def _source(call: Call) -> dict[str, Any]:
    model = await asyncio.to_thread(models.find, call["file"], call["folder"])
    sha256 = _digests_here().known(model.path)
    if not sha256 and model.path not in _reading:
        task = asyncio.ensure_future(in_background(_digests_here().of, model.path))
        _reading[model.path] = task
        task.add_done_callback(lambda done: _read_whole(model.path, done))
    return {"size": model.size, "sha256": sha256}


def _read_whole(path: Path, done: asyncio.Task[str]) -> None:
    del _reading[path]
    if not done.cancelled() and (error := done.exception()) is not None:
        logger.warning("%s cannot be read: %s", path, error)


async def _bytes(call: Call) -> web.Response:
    model = await asyncio.to_thread(models.find, call["file"], call["folder"])
    data = await asyncio.to_thread(read_piece, model.path, call["start"])
    return web.Response(body=data, content_type=routes.BYTES.gives)


async def _copy(call: Call) -> dict[str, Any]:
    remotes = await asyncio.to_thread(_remotes)
    remote = _named(remotes, call["worker"])
    source, name, folder = call["source"], call["file"], call["folder"]
    if source is None:
        model: Model = await asyncio.to_thread(models.find, name, folder)
    elif source == remote.name:
        raise InputError(f"{source} is to copy from and to: choose two workers.")
    else:
        model = await find_elsewhere(endpoint_of(_named(remotes, source)), name, folder)
    return asdict(_copies_here().begin(model, remote, source or ""))


def _named(remotes: Mapping[str, Remote], name: str) -> Remote:
    if name not in remotes:
        known = ", ".join(remotes) or "none, see docs/workers.md"
        raise NotFound(f"no worker on the network is called {name!r}; choose {known}.")
    return remotes[name]


async def _shown(_call: Call) -> dict[str, Any]:
    return {"copies": [asdict(each) for each in _copies_here().shown()]}


async def _cancel(call: Call) -> dict[str, Any]:
    found = _copies_here().cancel(call["copy"])
    if found is None:
        raise NotFound(f"no copy is called {call['copy']!r}; see `comfyfleet models copies`.")
    return asdict(found)


def _remotes() -> dict[str, Remote]:
    return {each.name: each for each in master().remotes()}


# Who has what.


async def _check(call: Call) -> dict[str, Any]:
    text = (await call.body()).decode("utf-8", "replace")
    prompt = _of_workers(parse_prompt(text, "the body"))
    async with _checking:  # in a thread of its own: the answers of workers are large
        return await asyncio.to_thread(_checked, prompt)


def _of_workers(prompt: Prompt) -> Prompt:
    """Without our own nodes, of which a worker needs none."""
    nodes: list[type[io.ComfyNode]] = [*NODES, *LEGACY_NODES]
    own = {each.GET_SCHEMA().node_id for each in nodes}
    return {key: node for key, node in prompt.items() if node["class_type"] not in own}


def _checked(prompt: Prompt) -> dict[str, Any]:
    sent = frozenset(_sent_with(prompt))
    endpoints = {name: endpoint_of(each) for name, each in _remotes().items()}
    looks = asyncio.run(look_at_all(endpoints, prompt, sent))
    looks.insert(0, _look_here(prompt, sent))
    missing = [need for look in looks for need in look.missing]
    needs = list(dict.fromkeys([*_weights(prompt), *missing]))
    own = _by_name(_own_models())
    return {
        "needs": [asdict(need) for need in needs],
        "workers": [_shown_look(look, needs, own) for look in looks],
    }


def _sent_with(prompt: Prompt) -> list[str]:
    """Input files that are here, however they are named."""
    folders = master().folders
    refs = find_files(prompt, lambda folder, name: (folders[folder] / name).is_file())
    return [text for ref in refs for text in (ref.name, f"{ref.name} [{ref.folder}]")]


def _look_here(prompt: Prompt, sent: frozenset[str]) -> Look:
    """This machine: the master, and its workers, which have the same files."""
    classes = {node["class_type"] for node in prompt.values()} | {"SaveImage"}
    own = Inventory(MASTER, inventory.described(classes))
    return Look(worker=MASTER, missing=tuple(own.missing(own.adapted(prompt), sent)))


def _weights(prompt: Prompt) -> list[Need]:
    """The model files that a workflow names."""
    return [
        Need(text, f"{node['class_type']}.{name}")
        for node in prompt.values()
        for name, value in node.get("inputs", {}).items()
        for text in strings_in(value)
        if is_weights_file(text)
    ]


def _by_name(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    named: dict[str, list[Mapping[str, Any]]] = {}
    for each in found:
        named.setdefault(str(each.get("file")), []).append(each)
    return named


def _shown_look(
    look: Look, needs: Sequence[Need], own: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    theirs = _by_name(look.models)
    differ = [
        number
        for number, need in enumerate(needs)
        if need not in look.missing
        and _differ(own.get(_plain(need.name), ()), theirs.get(_plain(need.name), ()))
    ]
    return {
        "worker": look.worker,
        "error": look.error,
        "accepts": look.accepts,
        "missing": [number for number, need in enumerate(needs) if need in look.missing],
        "differ": differ,
    }


def _plain(name: str) -> str:
    return name.replace("\\", "/")


def _differ(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> bool:
    """Is no file here like one there, as far as sizes and known digests say?"""
    alike = [
        a["size"] == b.get("size") and (not a["sha256"] or b.get("sha256") in ("", a["sha256"]))
        for a in ours
        for b in theirs
        if a["folder"] == b.get("folder")
    ]
    return bool(alike) and not any(alike)


# What is kept here.


def _digests_here() -> Digests:
    global _digests
    if _digests is None:
        _digests = Digests(owner_folder() / _DIGESTS_FILE)
    return _digests


def _intake_here() -> Intake:
    global _intake
    if _intake is None:
        _intake = Intake(_digests_here(), models.refresh)
    return _intake


def _copies_here() -> Copies:
    global _copies
    if _copies is None:
        _copies = Copies(_digests_here())
        atexit.register(_copies.close)
    return _copies
