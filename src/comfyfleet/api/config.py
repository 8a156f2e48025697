"""Routes that show and change fleet.yaml."""

from __future__ import annotations

from comfyfleet.api.fields import Field, named
from comfyfleet.api.route import Access, Route

_MAX_TEXT = 2000
_UNKNOWN = (404, "what was named is not there")

SHOW = Route(
    method="GET",
    path="/config",
    access=Access.PAGE,
    summary="What is set, by whom, and the workers elsewhere; no secrets.",
    answer="Config",
)
SET = Route(
    method="POST",
    path="/config/settings/{key}",
    access=Access.OWNER,
    summary="Set a setting in fleet.yaml, or take it out.",
    answer="Config",
    path_fields=(named("a key of fleet.yaml's settings", "key"),),
    body=(
        Field(
            name="value",
            pattern=f"^[^\\x00-\\x1f]{{0,{_MAX_TEXT}}}$",
            rule=f"one line of up to {_MAX_TEXT} characters",
            help="the value as one would type it; none takes the setting out",
        ),
    ),
)
ADD_WORKER = Route(
    method="POST",
    path="/config/workers",
    access=Access.OWNER,
    summary="Add a worker elsewhere that asks for no token. One with a token is added by the "
    "command, as whoever chooses an address for a token could have it sent anywhere.",
    answer="Config",
    body=(
        named("what it is called"),
        Field(
            name="url",
            required=True,
            pattern=f"^https?://[!-~]{{1,{_MAX_TEXT}}}$",
            rule="an address that begins with http:// or https://",
            help="where it answers",
        ),
    ),
)
REMOVE_WORKER = Route(
    method="DELETE",
    path="/config/workers/{worker}",
    access=Access.OWNER,
    summary="Take a worker elsewhere out of fleet.yaml; a fleet that runs keeps it until its end.",
    answer="Config",
    path_fields=(named("a worker of fleet.yaml", "worker"),),
    errors=(_UNKNOWN,),
)

CONFIG_ROUTES = (SHOW, SET, ADD_WORKER, REMOVE_WORKER)
