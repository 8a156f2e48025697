"""Routes for models: who has them, and copies to a worker elsewhere."""

from __future__ import annotations

from comfyfleet.api.fields import Field, named
from comfyfleet.api.guest import PIECE_BYTES
from comfyfleet.api.route import JSON, Access, Route

#: Formats that hold numbers and no code: whoever loads a pickle (.ckpt, .pt, .bin) runs it.
SUFFIXES = (".safetensors", ".sft", ".gguf")
#: A path below a model folder: no part of it is empty, begins with a dot, or is odd.
_FILE_PATTERN = (
    r"^(?!/)(?!\.)(?!.*//)(?!.*/\.)"
    r'[^\x00-\x1f\\:*?"<>|\ud800-\udfff]{1,400}\.(safetensors|sft|gguf)$'
)
_FILE_RULE = (
    "a name below a model folder, such as sd/base.safetensors, that ends in "
    f"{', '.join(SUFFIXES)}; other formats can hold code and are not copied"
)
#: Larger than any model.
_MAX_BYTES = 1 << 44
_MAX_WORKFLOW_BYTES = 16 << 20

_FILE = Field(
    name="file",
    required=True,
    pattern=_FILE_PATTERN,
    rule=_FILE_RULE,
    help="the model's name, as loaders show it, with / between its parts",
)
_FOLDER = named("a model folder as ComfyUI calls it, such as checkpoints", "folder")
_WHOLE = (
    _FOLDER,
    _FILE,
    Field(
        name="size",
        kind="integer",
        required=True,
        low=1,
        high=_MAX_BYTES,
        help="how many bytes the whole file has",
    ),
    Field(
        name="sha256",
        required=True,
        pattern="^[0-9a-f]{64}$",
        rule="a SHA-256 in hex",
        help="the SHA-256 of the whole file",
    ),
)
_START = Field(
    name="start",
    kind="integer",
    required=True,
    low=0,
    high=_MAX_BYTES,
    help="where these bytes begin",
)

LISTED = Route(
    method="GET",
    path="/guest/models",
    access=Access.TOKEN,
    summary="The models here that could be copied, and whether more are accepted.",
    answer="Models",
)
PART = Route(
    method="GET",
    path="/guest/models/part",
    access=Access.TOKEN,
    summary="How many bytes of a model are here, and what becomes of them?",
    answer="Part",
    query=_WHOLE,
)
PART_ADD = Route(
    method="PUT",
    path="/guest/models/part",
    access=Access.TOKEN,
    summary="The next bytes of a model. Bytes that are not the next ones change nothing.",
    answer="Part",
    query=(*_WHOLE, _START),
    reads="application/octet-stream",
    max_bytes=PIECE_BYTES,
)
SOURCE = Route(
    method="GET",
    path="/guest/models/source",
    access=Access.TOKEN,
    summary="Size and SHA-256 of a model here; an empty one is being computed: ask again.",
    answer="Source",
    query=(_FOLDER, _FILE),
)
BYTES = Route(
    method="GET",
    path="/guest/models/bytes",
    access=Access.TOKEN,
    summary="The bytes of a model from there on, 8 MiB at most.",
    answer="Bytes of the model; none beyond its end.",
    query=(_FOLDER, _FILE, _START),
    gives="application/octet-stream",
)
CHECK = Route(
    method="POST",
    path="/models/check",
    access=Access.PAGE,
    summary="Which of the models and node classes of a workflow (API format) each worker has.",
    answer="Checked",
    reads=JSON,
    max_bytes=_MAX_WORKFLOW_BYTES,
)
COPY = Route(
    method="POST",
    path="/models/copy",
    access=Access.OWNER,
    summary="Copy a model to a worker elsewhere; or join such a copy.",
    answer="Copy",
    body=(
        _FILE,
        named("a worker elsewhere", "worker"),
        Field(
            name="folder",
            pattern=_FOLDER.pattern,
            rule=_FOLDER.rule,
            help="the model folder; needed where several have such a file",
        ),
        Field(
            name="source",
            pattern=_FOLDER.pattern,
            rule=_FOLDER.rule,
            help="the worker elsewhere that has it; without one, this machine",
        ),
    ),
    errors=((404, "there is no such model, or no such worker"),),
)
COPIES = Route(
    method="GET",
    path="/models/copies",
    access=Access.PAGE,
    summary="The copies of models that wait, run, or have ended.",
    answer="Copies",
)
CANCEL_COPY = Route(
    method="POST",
    path="/models/copies/{copy}/cancel",
    access=Access.OWNER,
    summary="Stop a copy. What has arrived stays there, and the next copy goes on from it.",
    answer="Copy",
    path_fields=(named("a copy, as it was named when it began", "copy"),),
    errors=((404, "what was named is not there"),),
)

MODEL_ROUTES = (LISTED, PART, PART_ADD, SOURCE, BYTES, CHECK, COPY, COPIES, CANCEL_COPY)
