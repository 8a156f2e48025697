"""Who is let in to our routes: by token, by page, by code; and who is not."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from comfyfleet.api import Access
from comfyfleet.errors import AccessError
from comfyfleet.fleet.gate import Caller, Gate
from comfyfleet.fleet.pairing import VALID_S, Failures, Pairing
from comfyfleet.fleet.tokens import OWNER, PAGE, Tokens, own_token

HERE = "127.0.0.1:8188"
LAN = "192.168.1.5:8188"


class Clock:
    """Time that the test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    found = Tokens(tmp_path / "tokens.json")
    found.prepare()
    return found


@pytest.fixture
def gate(tokens: Tokens, clock: Clock) -> Gate:
    return Gate(tokens, ["Studio.Example"], clock)


def caller(
    host: str = HERE, address: str = "127.0.0.1", scheme: str = "http", **headers: str
) -> Caller:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Caller(scheme=scheme, address=address, headers=CIMultiDict({"Host": host, **named}))


def refused(gate: Gate, who: Caller, access: Access = Access.PAGE) -> int:
    with pytest.raises(AccessError) as caught:
        gate.admit(who, access)
    return caught.value.status


# By token.


@pytest.mark.parametrize("access", [Access.PAGE, Access.TOKEN, Access.OWNER])
def test_the_owners_token_opens_everything_from_anywhere(
    gate: Gate, tokens: Tokens, access: Access
) -> None:
    authorization = f"Bearer {own_token(tokens.path)}"
    foreign = {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}
    for host in (HERE, "pod-8188.proxy.example", "evil.example"):
        who = caller(host, "203.0.113.9", Authorization=authorization, **foreign)
        assert gate.admit(who, access) == OWNER


def test_somebody_elses_token_opens_what_is_not_the_owners(gate: Gate, tokens: Tokens) -> None:
    who = caller(Authorization=f"bearer {tokens.issue('studio')}")
    assert gate.admit(who, Access.PAGE) == gate.admit(who, Access.TOKEN) == "studio"
    assert refused(gate, who, Access.OWNER) == 403
    tokens.revoke("studio")
    assert refused(gate, who, Access.PAGE) == 401


@pytest.mark.parametrize("said", ["", "Bearer", "Bearer ", "Bearer x", "Basic eDp5", "x", "\udcff"])
def test_a_wrong_token_is_refused_even_from_the_page(gate: Gate, said: str) -> None:
    for access in (Access.PAGE, Access.TOKEN, Access.OWNER):
        assert (
            refused(gate, caller(Authorization=said, Sec_Fetch_Site="same-origin"), access) == 401
        )


def test_wrong_tokens_are_slowed_down_and_the_right_one_never(
    gate: Gate, tokens: Tokens, clock: Clock
) -> None:
    wrong = caller(address="203.0.113.9", Authorization="Bearer x")
    assert [refused(gate, wrong) for _ in range(22)] == [401] * 20 + [429] * 2
    assert refused(gate, caller(Authorization="Bearer x")) == 401, "others are not"
    right = caller(address="203.0.113.9", Authorization=f"Bearer {own_token(tokens.path)}")
    assert gate.admit(right, Access.PAGE) == OWNER
    clock.now += 61
    assert refused(gate, wrong) == 401


# By page.


@pytest.mark.parametrize(
    "who",
    [
        caller(Sec_Fetch_Site="same-origin"),
        caller("localhost:8188", Sec_Fetch_Site="same-origin", Origin="http://localhost:8188"),
        caller("comfy.localhost:8188", Sec_Fetch_Site="same-origin"),
        caller("[::1]:8188", Sec_Fetch_Site="same-origin"),
        caller(LAN, Origin=f"http://{LAN}"),
        caller(LAN, Referer=f"http://{LAN}/some/page?x=1"),
        caller(f"{socket.gethostname()}:8188", Sec_Fetch_Site="same-origin"),
        caller("studio.example", Sec_Fetch_Site="same-origin", Origin="https://studio.example"),
        caller("studio.example.", scheme="https", Origin="https://studio.example:443"),
    ],
)
def test_its_own_page_is_let_in(gate: Gate, who: Caller) -> None:
    assert gate.admit(who, Access.PAGE) == PAGE
    assert refused(gate, who, Access.TOKEN) == 401


@pytest.mark.parametrize(
    "who",
    [
        caller(Origin="http://evil.example"),
        caller(Origin="null"),
        caller(Origin="http://127.0.0.1:9999"),
        caller(Origin="https://127.0.0.1:8188"),
        caller(Origin="http://[", Sec_Fetch_Site="same-origin"),
        caller(Origin="http://evil.example", Sec_Fetch_Site="same-origin"),
        caller(Sec_Fetch_Site="cross-site"),
        caller(Sec_Fetch_Site="same-site"),
        caller(Sec_Fetch_Site="cross-site", Referer=f"http://{HERE}/"),
    ],
)
@pytest.mark.parametrize("access", Access)
def test_a_foreign_page_is_refused(gate: Gate, who: Caller, access: Access) -> None:
    assert refused(gate, who, access) == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8188", "127.0.0.1.evil.example", "localhost.evil.example", "",
     "[", "notlocalhost", "127.0.0.1x", "::1", "studio.example.evil", "evil.example@127.0.0.1",
     "evil.example\\@127.0.0.1"],
)  # fmt: skip
def test_a_name_that_somebody_gave_to_our_address_is_refused(gate: Gate, host: str) -> None:
    """DNS rebinding: the browser takes the attacker's page for ours."""
    who = caller(host, Sec_Fetch_Site="same-origin", Origin=f"http://{host}")
    assert refused(gate, who) == 403
    assert refused(gate, who, Access.OWNER) == 403


@pytest.mark.parametrize(
    "who",
    [
        caller(),
        caller(Sec_Fetch_Site="none"),
        caller(LAN, Referer="http://evil.example/"),
        caller(LAN, Referer=f"http://evil.example/http://{LAN}/"),
        caller("0.0.0.0:8188", Referer="http://evil.example/"),
    ],
)
def test_who_says_nothing_needs_a_token(gate: Gate, who: Caller) -> None:
    assert refused(gate, who) == 401


def test_what_is_the_owners_works_from_a_page_on_this_machine_alone(gate: Gate) -> None:
    page = {"Sec_Fetch_Site": "same-origin"}
    assert gate.admit(caller(**page), Access.OWNER) == PAGE
    for who in (
        caller(address="192.168.1.9", **page),
        caller(LAN, "192.168.1.5", **page),
        caller("studio.example", **page),
        caller(X_Forwarded_For="203.0.113.9", **page),
        caller(Via="1.1 proxy", **page),
        caller(X_Forwarded_Proto="https", **page),
        replace(caller(**page), version=(1, 0)),  # as nginx asks what is behind it
    ):
        assert refused(gate, who, Access.OWNER) == 403


def test_a_stranger_with_a_code_comes_by_any_name_but_from_no_page(gate: Gate) -> None:
    assert gate.admit(caller("pod-8188.proxy.example"), Access.CODE) == ""
    assert refused(gate, caller(Origin="http://evil.example"), Access.CODE) == 403


text = st.text(st.characters(codec="latin-1"), max_size=40)
pieces = st.sampled_from(["http://", "127.0.0.1", ":8188", "evil.example", "@", "[", "]", "/", "."])
said = text | st.lists(pieces, max_size=6).map("".join)


@given(host=said, origin=said, referer=said, site=st.none() | said)
def test_whatever_is_said_ends_in_a_decision(
    tmp_path_factory: pytest.TempPathFactory, host: str, origin: str, referer: str, site: str | None
) -> None:
    gate = Gate(Tokens(tmp_path_factory.getbasetemp() / "decision.json"))
    headers = CIMultiDict({"Host": host, "Origin": origin, "Referer": referer})
    if site is not None:
        headers["Sec-Fetch-Site"] = site
    who = Caller(scheme="http", address="", headers=headers)
    try:
        assert gate.admit(who, Access.PAGE) == PAGE
        assert "evil" not in who.host
    except AccessError as error:
        assert error.status in (401, 403)


# By code.


@pytest.fixture
def pairing(clock: Clock) -> Pairing:
    return Pairing(clock)


def void(pairing: Pairing, code: str) -> str:
    with pytest.raises(AccessError, match="this code is not valid, or no longer") as caught:
        pairing.redeem(code, lambda: "token")
    assert caught.value.status == 403
    return str(caught.value)


def test_a_code_gives_one_token_once(pairing: Pairing) -> None:
    code = pairing.new_code()
    assert len(code) == 8 and not set(code) & set("01ILO")
    assert pairing.redeem(code, lambda: "token") == "token"
    void(pairing, code)


def test_a_code_ends_after_minutes(pairing: Pairing, clock: Clock) -> None:
    code = pairing.new_code()
    clock.now = VALID_S - 1
    void(pairing, "AAAAAAAA")
    clock.now = VALID_S
    void(pairing, code)


def test_the_fifth_wrong_code_ends_it(pairing: Pairing) -> None:
    code = pairing.new_code()
    said = {void(pairing, "AAAAAAAA") for _ in range(5)}
    assert said == {void(pairing, code)}, "nobody learns whether a code is out"


def test_a_new_code_ends_the_one_before(pairing: Pairing) -> None:
    first, second = pairing.new_code(), pairing.new_code()
    void(pairing, first)
    assert pairing.redeem(second, lambda: "token") == "token"


def test_a_code_is_not_used_up_by_a_name_that_is_taken(pairing: Pairing) -> None:
    code = pairing.new_code()

    def taken() -> str:
        raise AccessError(409, "taken")

    with pytest.raises(AccessError, match="taken"):
        pairing.redeem(code, taken)
    assert pairing.redeem(code, lambda: "token") == "token"


def test_only_so_many_addresses_are_counted(clock: Clock) -> None:
    failures = Failures(most=1, max_addresses=3, clock=clock)
    for address in "abcd":
        failures.add(address)
    assert [failures.wait_s(address) > 0 for address in "abcd"] == [False, True, True, True]
