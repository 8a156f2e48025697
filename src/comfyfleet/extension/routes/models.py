"""Routes for models: who has which, copies to workers elsewhere, and copies that come here."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from aiohttp import web
from comfy_api.latest import io

from comfyfleet.api import models as routes
from comfyfleet.client.inventory import Inventory, Need
from comfyfleet.client.models import Site, Whole, find_elsewhere
from comfyfleet.client.preflight import Look, look_at_all
from comfyfleet.comfy import inventory, models
from comfyfleet.comfy.stock import Stock
from comfyfleet.config import ACCEPT_MODELS
from comfyfleet.errors import AccessError, InputError
from comfyfleet.extension.master import master
from comfyfleet.extension.nodes import LEGACY_NODES, NODES
from comfyfleet.extension.owner import read_config
from comfyfleet.extension.routes.access import serve
from comfyfleet.extension.routes.answers import Call, NotFound
from comfyfleet.fleet import MASTER
from comfyfleet.fleet.copies import Copies, Model
from comfyfleet.fleet.node_models import look_at_nodes, node_sites
from comfyfleet.fleet.remote import endpoint_of, site_of
from comfyfleet.graph import find_files, is_file, is_weights_file, parse_prompt, strings_in
from comfyfleet.work import Prompt

_stock: Stock | None = None
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
        "models": await _stock_here().listed(),
    }


async def _part(call: Call) -> Mapping[str, Any]:
    await asyncio.to_thread(_require_acceptance)
    return await _stock_here().state(_whole(call))


async def _add(call: Call) -> Mapping[str, Any]:
    await asyncio.to_thread(_require_acceptance)
    return await _stock_here().add(_whole(call), call["start"], await call.body())


def _whole(call: Call) -> Whole:
    return Whole(folder=call["folder"], file=call["file"], size=call["size"], sha256=call["sha256"])


def _require_acceptance() -> None:
    if not _accepts():
        raise AccessError(
            403,
            "models are not accepted here: its owner has to set accept_models to true there, below "
            "settings in fleet.yaml (comfyfleet config set accept_models true).",
        )


def _accepts() -> bool:
    return read_config().value(ACCEPT_MODELS)


# What goes to others.


async def _source(call: Call) -> Mapping[str, Any]:
    return await _stock_here().source(call["folder"], call["file"])


async def _bytes(call: Call) -> web.Response:
    data = await _stock_here().read(call["folder"], call["file"], call["start"])
    return web.Response(body=data, content_type=routes.BYTES.gives)


async def _copy(call: Call) -> dict[str, Any]:
    sites = await asyncio.to_thread(_sites)
    site = _named(sites, call["worker"])
    source, name, folder = call["source"], call["file"], call["folder"]
    if source is None:
        model: Model = await asyncio.to_thread(models.find, name, folder)
    elif _named(sites, source).place == site.place:
        raise InputError(f"{source} is to copy from and to: choose two workers.")
    else:
        model = await find_elsewhere(sites[source], name, folder)
    return asdict(_copies_here().begin(model, site, source or ""))


def _named(sites: Mapping[str, Site], name: str) -> Site:
    if name not in sites:
        known = ", ".join(sites) or "none, see docs/workers.md"
        raise NotFound(
            f"no worker elsewhere is called {name!r}; choose {known}. Those of a cluster are "
            "known while they run."
        )
    return sites[name]


async def _shown(_call: Call) -> dict[str, Any]:
    return {"copies": [asdict(each) for each in _copies_here().shown()]}


async def _cancel(call: Call) -> dict[str, Any]:
    found = _copies_here().cancel(call["copy"])
    if found is None:
        raise NotFound(f"no copy is called {call['copy']!r}; see `comfyfleet models copies`.")
    return asdict(found)


def _sites() -> dict[str, Site]:
    nodes = node_sites(master().seen_fleet)
    return {**nodes, **{each.name: site_of(each) for each in master().remotes()}}


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
    looks, listed = asyncio.run(_asked(prompt, sent))
    looks.insert(0, _look_here(prompt, sent))
    missing = [need for look in looks for need in look.missing]
    needs = list(dict.fromkeys([*_weights(prompt), *missing]))
    own = _by_name(listed)
    return {
        "needs": [asdict(need) for need in needs],
        "workers": [_shown_look(look, needs, own) for look in looks],
    }


async def _asked(
    prompt: Prompt, sent: frozenset[str]
) -> tuple[list[Look], list[Mapping[str, Any]]]:
    """What the workers elsewhere say, and the models here."""
    endpoints = {each.name: endpoint_of(each) for each in master().remotes()}
    by_address, nodes, listed = await asyncio.gather(
        look_at_all(endpoints, prompt, sent),
        look_at_nodes(master().seen_fleet, prompt, sent),
        _stock_here().listed(),
    )
    return [*by_address, *nodes], listed


def _sent_with(prompt: Prompt) -> list[str]:
    """Input files that are here, however they are named."""
    folders = master().folders
    refs = find_files(prompt, lambda folder, name: is_file(folders[folder] / name))
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


def _stock_here() -> Stock:
    global _stock
    if _stock is None:
        _stock = Stock()
    return _stock


def _copies_here() -> Copies:
    global _copies
    if _copies is None:
        _copies = Copies(_stock_here().digests)
        atexit.register(_copies.close)
    return _copies
