"""Describe our routes in docs/openapi.json: ``python scripts/openapi.py``.

OpenAPI 3.1, made from the table that the routes are registered by.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from comfyfleet.api import BASE, JSON, ROUTES, Access, Field, Route
from comfyfleet.fleet.copies import Copy
from comfyfleet.fleet.insight import Snapshot

OPENAPI = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"

Schema = dict[str, Any]

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}
_ACCESS = {
    Access.PAGE: "A token, or ComfyUI's own page.",
    Access.TOKEN: "A token.",
    Access.OWNER: "The owner's token, or ComfyUI's own page on the machine that it runs on.",
    Access.CODE: "No token: the code decides.",
}


def schema_of(kind: Any) -> Schema:
    """JSON Schema of what ``json.dumps(dataclasses.asdict(...))`` makes of such a value."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return _object({field.name: schema_of(hints[field.name]) for field in fields(kind)})
    if origin is Literal:
        return {"type": "string", "enum": list(parts)}
    if origin is tuple:
        return _list(schema_of(parts[0]))
    if origin in (Union, types.UnionType):
        some = [schema_of(part) for part in parts if part is not type(None)]
        return {"anyOf": [*some, {"type": "null"}]}
    raise TypeError(f"{kind} has no schema; add it here")


def _object(properties: Mapping[str, Schema]) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TEXT, _FLAG = {"type": "string"}, {"type": "boolean"}
_RAW = {"type": "string", "format": "binary"}
_SIZE = {"type": "integer", "minimum": 0}
_SHARING = _object({"on": _FLAG, "master_computes": _FLAG, "note": _TEXT})
_NEED = _object({"name": _TEXT, "input": _TEXT})
_LOOK = _object(
    {
        "worker": _TEXT,
        "error": _TEXT,
        "accepts": _FLAG,
        "missing": _list(_SIZE),
        "differ": _list(_SIZE),
    }
)
_MODEL = _object({"folder": _TEXT, "file": _TEXT, "size": _SIZE, "sha256": _TEXT})
_PART_STATE = {"type": "string", "enum": ["open", "checking", "whole"]}
_STATUS = _object(
    {
        "fleet": {"type": "string", "enum": ["none", "starting", "running", "ended"]},
        "sharing": {"$ref": "#/components/schemas/Sharing"},
        **schema_of(Snapshot)["properties"],
    }
)

_SETTING = _object({"value": {}, "source": _TEXT, "default": {}, "env": _TEXT, "help": _TEXT})
_WORKER: Schema = {
    "type": "object",
    "properties": {
        **{name: _TEXT for name in ("name", "url", "token_env", "token_file", "ca")},
        "enabled": _FLAG,
    },
    "required": ["name", "url"],
    "additionalProperties": False,
}

#: What routes answer, by the names in ``Route.answer``.
ANSWERS: Mapping[str, Schema] = {
    "Acted": _object({"workers": _list(_TEXT), "action": _TEXT}),
    "Cancelled": _object({"run": _TEXT, "action": {"type": "string", "const": "cancel"}}),
    "Checked": _object({"needs": _list(_NEED), "workers": _list(_LOOK)}),
    "Code": _object({"code": _TEXT, "valid_s": {"type": "number"}}),
    "Config": _object(
        {
            "path": _TEXT,
            "settings": {"type": "object", "additionalProperties": _SETTING},
            "workers": _list(_WORKER),
        }
    ),
    "Copies": _object({"copies": _list(schema_of(Copy))}),
    "Copy": schema_of(Copy),
    "Done": _object({}),
    "Error": _object({"error": _TEXT}),
    "Hello": _object({"comfyfleet": _TEXT, "protocol": {"type": "integer"}}),
    "Here": _object({"start": _SIZE}),
    "Holders": _object({"tokens": _list(_object({"name": _TEXT, "created": _TEXT}))}),
    "Log": _object({"worker": _TEXT, "host": _TEXT, "file": _TEXT, "lines": _list(_TEXT)}),
    "Manifest": _object({"skeleton": {}, "sizes": _list(_SIZE)}),
    "Models": _object({"accepts": _FLAG, "models": _list(_MODEL)}),
    "Part": _object({"start": _SIZE, "state": _PART_STATE}),
    "Revoked": _object({"name": _TEXT, "revoked": _FLAG}),
    "Sharing": _SHARING,
    "Source": _object({"size": _SIZE, "sha256": _TEXT}),
    "Status": _STATUS,
    "Token": _object({"name": _TEXT, "token": _TEXT}),
}


def description() -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.address, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ComfyFleet",
            "version": version("comfyfleet"),
            "description": f"The routes below {BASE} of a ComfyUI with the extension. Each answers "
            f"below /api{BASE} as well. Errors are one sentence: "
            '`{"error": "..."}`. docs/security.md says who may ask.',
        },
        "paths": paths,
        "components": {
            "schemas": dict(ANSWERS),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": route.summary, "description": _ACCESS[route.access]}
    found["x-comfyfleet-access"] = route.access.value
    found["security"] = _security(route.access)
    parameters = [_parameter(each, "path") for each in route.path_fields]
    parameters += [_parameter(each, "query") for each in route.query]
    if parameters:
        found["parameters"] = parameters
    if route.body is not None:
        found["requestBody"] = _body(JSON, _object_of(route.body))
    elif route.reads:
        found["requestBody"] = _body(
            route.reads, {"type": "object"} if route.reads == JSON else _RAW
        )
    found["responses"] = dict(sorted(_responses(route).items()))
    return found


def _security(access: Access) -> list[dict[str, list[str]]]:
    if access is Access.CODE:
        return []
    page: list[dict[str, list[str]]] = [{}] if access in (Access.PAGE, Access.OWNER) else []
    return [{"token": []}, *page]


def _parameter(field: Field, place: str) -> dict[str, Any]:
    required = field.required or place == "path"
    return {"name": field.name, "in": place, "required": required, "schema": field.schema()}


def _body(content: str, schema: Schema) -> dict[str, Any]:
    return {"required": True, "content": {content: {"schema": schema}}}


def _object_of(given: Sequence[Field]) -> Schema:
    properties = {field.name: field.schema() for field in given}
    for field in given:
        if not field.required:
            properties[field.name]["type"] = [field.kind, "null"]
    required = [field.name for field in given if field.required]
    return {**_object(properties), "required": required}


def _responses(route: Route) -> dict[str, Any]:
    other = _TEXT if route.gives.startswith("text/") else _RAW
    schema = {"$ref": f"#/components/schemas/{route.answer}"} if route.gives == JSON else other
    what = route.summary if route.gives == JSON else route.answer
    found = {"200": {"description": what, "content": {route.gives: {"schema": schema}}}}
    error = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    return found | {
        str(status): {"description": why, "content": error} for status, why in _errors(route)
    }


def _errors(route: Route) -> list[tuple[int, str]]:
    """What follows from what it reads and who may ask, and its own."""
    found = [(403, "another origin, an unknown host name, or not for this caller")]
    found.append((429, "too many wrong tokens or codes from this address"))
    found.append((503, "the fleet, or the file of tokens, cannot do this now"))
    if route.access is not Access.CODE:
        found.append((401, "no token, or none that is valid"))
    reads = route.body is not None or bool(route.reads)
    if reads:
        found += [(408, "the body came too slowly"), (413, "the body is too large")]
    if reads or route.path_fields or route.query:
        found.append((400, "something that was given is not allowed"))
    return [*found, *route.errors]


def as_text() -> str:
    """The description as it lies in the file."""
    return json.dumps(description(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    OPENAPI.write_text(as_text(), encoding="utf-8")
