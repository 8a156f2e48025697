"""What callers may give, and what is said of the rest; all of it is in the description."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.api import ROUTES, Route
from comfyfleet.api.config import SET
from comfyfleet.api.routes import ACT, LOG, PAIR, SET_SHARE
from comfyfleet.errors import InputError
from scripts.openapi import description

BAD_NAMES = (
    "", ".", "..", "../x", "a/b", "a\\b", "a b", "-x", "x\n", "<b>", "é", "x" * 65, "a\x00",
)  # fmt: skip


def body_schema(route: Route) -> dict:
    operation = description()["paths"][route.address][route.method.lower()]
    return operation["requestBody"]["content"]["application/json"]["schema"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_plain(name: str) -> None:
    with pytest.raises(InputError, match="letters, digits, dots, dashes"):
        ACT.read_url({"worker": name, "action": "free"}, {})


@pytest.mark.parametrize("lines", ["0", "-1", "many", "10001", "99999999999", "1.0", "\u0661", ""])
def test_a_number_has_limits(lines: str) -> None:
    with pytest.raises(InputError, match=r"lines is .*; give a whole number, 1 to 10000\."):
        LOG.read_url({"worker": "cpu-0"}, {"lines": lines})


def test_what_is_given_is_read_and_the_rest_has_its_default() -> None:
    assert LOG.read_url({"worker": "cpu-0"}, {}) == {"worker": "cpu-0", "lines": 200}
    assert LOG.read_url({"worker": "cpu-0"}, {"lines": "7"})["lines"] == 7
    given = SET_SHARE.read_body({"on": True, "stagger_s": 2})
    assert given == {"on": True, "stagger_s": 2.0, "master_computes": None}


def test_a_sentence_repeats_no_more_than_a_piece() -> None:
    with pytest.raises(InputError) as caught:
        PAIR.read_body({"code": "x" * 100_000, "name": "n"})
    assert len(str(caught.value)) < 250


def test_half_a_letter_is_no_text() -> None:
    """JSON can hold one; no file can."""
    with pytest.raises(InputError, match="one line of up to 2000 characters"):
        SET.read_body(json.loads('{"value": "\\ud800"}'))


def test_an_unknown_field_is_said() -> None:
    with pytest.raises(InputError, match=r"the body has 'of'; it may have on, master_computes"):
        SET_SHARE.read_body({"on": True, "of": 1})


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
names = st.sampled_from(["on", "master_computes", "stagger_s", "code", "name"]) | st.text()
anything = st.dictionaries(names, plain | st.sampled_from(["ABCDEFGH", 86400, "me"])) | plain


@given(anything)
@pytest.mark.parametrize("route", [SET_SHARE, PAIR], ids=lambda route: route.path)
def test_the_description_allows_what_the_code_allows(route: Route, body: object) -> None:
    valid = jsonschema.Draft202012Validator(body_schema(route)).is_valid(body)
    try:
        route.read_body(body)
        read = True
    except InputError:
        read = False
    assert read == valid, json.dumps(body)


def test_each_route_stands_in_the_table_once() -> None:
    places = [(route.method, route.address) for route in ROUTES]
    assert len(set(places)) == len(places)
