"""All routes of ours. docs/openapi.json is made from this table."""

from __future__ import annotations

from comfyfleet.api.config import CONFIG_ROUTES
from comfyfleet.api.fields import Field, named
from comfyfleet.api.guest import GUEST_ROUTES
from comfyfleet.api.models import MODEL_ROUTES
from comfyfleet.api.route import Access, Route

#: What may be done with one worker.
ACTIONS = ("enable", "disable", "restart", "interrupt", "free")

#: The code of a pairing: no letter or digit that looks like another one.
CODE_ALPHABET = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
CODE_LENGTH = 8

MAX_LINES = 10_000
_UNKNOWN = (404, "what was named is not there")
_WORKER = named("a worker, such as cuda1 or cpu-0", "worker")

SHARE = Route(
    method="GET",
    path="/share",
    access=Access.PAGE,
    summary="Do workers take prompts from ComfyUI's own queue?",
    answer="Sharing",
)
SET_SHARE = Route(
    method="POST",
    path="/share",
    access=Access.PAGE,
    summary="Let workers take prompts from ComfyUI's own queue, or not.",
    answer="Sharing",
    body=(
        Field(name="on", kind="boolean", required=True, help="share the queue?"),
        Field(name="master_computes", kind="boolean", help="does the master compute too?"),
        Field(
            name="stagger_s",
            kind="number",
            low=0,
            high=86400,
            unit="seconds",
            help="seconds between two workers that begin to load a model",
        ),
    ),
)
CANCEL = Route(
    method="POST",
    path="/runs/{run}/cancel",
    access=Access.PAGE,
    summary="Stop a run, wherever its units are.",
    answer="Cancelled",
    path_fields=(named("a run, as status names it", "run"),),
    errors=(_UNKNOWN,),
)
ACT = Route(
    method="POST",
    path="/workers/{worker}/{action}",
    access=Access.PAGE,
    summary="Do something with one worker, or with all.",
    answer="Acted",
    path_fields=(
        named("a worker, such as cuda1 or cpu-0, or all", "worker"),
        Field(name="action", required=True, choices=ACTIONS, help="what to do"),
    ),
    errors=(_UNKNOWN,),
)
STATUS = Route(
    method="GET",
    path="/status",
    access=Access.PAGE,
    summary="The state of everything.",
    answer="Status",
)
LOG = Route(
    method="GET",
    path="/workers/{worker}/log",
    access=Access.PAGE,
    summary="The last lines that a worker printed.",
    answer="Log",
    path_fields=(_WORKER,),
    query=(
        Field(
            name="lines",
            kind="integer",
            default=200,
            low=1,
            high=MAX_LINES,
            help="how many of the last lines",
        ),
    ),
    errors=(_UNKNOWN,),
)
METRICS = Route(
    method="GET",
    path="/metrics",
    access=Access.PAGE,
    summary="Figures for Prometheus.",
    answer="the text format of Prometheus",
    gives="text/plain",
)
EVENTS = Route(
    method="GET",
    path="/events",
    access=Access.PAGE,
    summary="All that happens, as Server-Sent Events, for as long as one listens.",
    answer="first the event status, then one for each thing that happens",
    gives="text/event-stream",
)
TOKENS = Route(
    method="GET",
    path="/tokens",
    access=Access.OWNER,
    summary="Who holds a token of this fleet; never the tokens themselves.",
    answer="Holders",
)
REVOKE = Route(
    method="POST",
    path="/tokens/{name}/revoke",
    access=Access.OWNER,
    summary="Take a token back; it is refused from now on.",
    answer="Revoked",
    path_fields=(named("who holds the token"),),
    errors=(_UNKNOWN,),
)
NEW_CODE = Route(
    method="POST",
    path="/pairing",
    access=Access.OWNER,
    summary="A code by which somebody else gets a token; it replaces the one before.",
    answer="Code",
)
PAIR = Route(
    method="POST",
    path="/pair",
    access=Access.CODE,
    summary="Get a token of one's own for the code that the owner was shown.",
    answer="Token",
    body=(
        Field(
            name="code",
            required=True,
            pattern=f"^[{CODE_ALPHABET}]{{{CODE_LENGTH}}}$",
            rule=f"the {CODE_LENGTH} letters and digits of the code, without spaces or dashes",
            help="the code that the owner was shown",
        ),
        named("who will hold the token"),
    ),
    errors=((409, "somebody of that name holds a token, or too many do"),),
)

JOIN = Route(
    method="GET",
    path="/join",
    access=Access.TOKEN,
    summary="A web socket by which a worker that cannot be reached lets this fleet use it.",
    answer="Done",
    query=(named("what the worker shall be called here", "worker"),),
    errors=((409, "a worker of that name is there"),),
)

ROUTES = (
    SHARE, SET_SHARE, CANCEL, ACT, STATUS, LOG, METRICS, EVENTS, TOKENS, REVOKE, NEW_CODE, PAIR,
    JOIN, *CONFIG_ROUTES, *GUEST_ROUTES, *MODEL_ROUTES,
)  # fmt: skip
