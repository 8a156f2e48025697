"""Routes for fleets of other machines that use this ComfyUI as a worker; see ``client.guest``."""

from __future__ import annotations

from comfyfleet.api.fields import Field, named
from comfyfleet.api.route import JSON, Access, Route

#: What a fleet and its workers understand alike; another number is another language.
PROTOCOL = 2
#: Values travel in pieces of so many bytes at most: what is repeated after a break.
PIECE_BYTES = 8 << 20

#: Larger than any value.
_MAX_SIZE = 1 << 40
#: Skeletons of values: what is not in buffers.
_MAX_DESCRIBED = 64 << 20
_BYTES = "application/octet-stream"

_BLOB = Field(
    name="name",
    required=True,
    pattern="^[0-9a-f]{64}$",
    rule="a SHA-256 in hex",
    help="the SHA-256 of the value's bytes, in hex",
)
_PROMPT = named("the prompt, as ComfyUI names it", "prompt")


def _count(name: str, what: str, high: int = _MAX_SIZE) -> Field:
    return Field(name=name, help=what, kind="integer", required=True, low=0, high=high)


_SIZE = _count("size", "how many bytes the whole value has")
_START = _count("start", "where these bytes begin")
_INPUT = Field(
    name="name",
    required=True,
    pattern=r"^[0-9a-f]{40}(\.[a-z0-9_-]{1,16})?$",
    rule="40 hex digits of a SHA-256, and a suffix",
    help="the first 40 hex digits of the file's SHA-256, with its suffix",
)

HELLO = Route(
    method="GET",
    path="/guest/hello",
    access=Access.TOKEN,
    summary="Which ComfyFleet is this, and which language does it speak?",
    answer="Hello",
)
BLOB_START = Route(
    method="GET",
    path="/guest/blobs/{name}",
    access=Access.TOKEN,
    summary="How many bytes of a value are here?",
    answer="Here",
    path_fields=(_BLOB,),
    query=(_SIZE,),
)
BLOB_ADD = Route(
    method="PUT",
    path="/guest/blobs/{name}",
    access=Access.TOKEN,
    summary="The next bytes of a value.",
    answer="Here",
    path_fields=(_BLOB,),
    query=(_SIZE, _START),
    reads=_BYTES,
    max_bytes=PIECE_BYTES,
)
INPUT_START = Route(
    method="GET",
    path="/guest/inputs/{name}",
    access=Access.TOKEN,
    summary="How many bytes of an input file are here?",
    answer="Here",
    path_fields=(_INPUT,),
    query=(_SIZE,),
)
INPUT_ADD = Route(
    method="PUT",
    path="/guest/inputs/{name}",
    access=Access.TOKEN,
    summary="The next bytes of an input file. Bytes that are not the next ones change nothing.",
    answer="Here",
    path_fields=(_INPUT,),
    query=(_SIZE, _START),
    reads=_BYTES,
    max_bytes=PIECE_BYTES,
)
HOLD = Route(
    method="PUT",
    path="/guest/prompts/{prompt}",
    access=Access.TOKEN,
    summary="Give a prompt its values, by their digests; they are here already.",
    answer="Done",
    path_fields=(_PROMPT,),
    reads=JSON,
    max_bytes=_MAX_DESCRIBED,
)
MANIFEST = Route(
    method="GET",
    path="/guest/prompts/{prompt}",
    access=Access.TOKEN,
    summary="What a prompt has returned: a skeleton, and the sizes of its buffers.",
    answer="Manifest",
    path_fields=(_PROMPT,),
)
FORGET = Route(
    method="DELETE",
    path="/guest/prompts/{prompt}",
    access=Access.TOKEN,
    summary="Let go of what is kept for a prompt.",
    answer="Done",
    path_fields=(_PROMPT,),
)
PIECE = Route(
    method="GET",
    path="/guest/prompts/{prompt}/{buffer}",
    access=Access.TOKEN,
    summary="Bytes of a result.",
    answer="the bytes, raw or compressed as was asked",
    path_fields=(_PROMPT, _count("buffer", "which buffer of the result", 1 << 20)),
    query=(
        _count("start", "the first byte"),
        _count("stop", "the byte after the last one"),
        Field(
            name="encoding",
            default="raw",
            help="as they are, or compressed without loss",
            choices=("raw", "filter-zstd"),
        ),
    ),
    gives=_BYTES,
)

GUEST_ROUTES = (
    HELLO, BLOB_START, BLOB_ADD, INPUT_START, INPUT_ADD, HOLD, MANIFEST, FORGET, PIECE,
)  # fmt: skip
