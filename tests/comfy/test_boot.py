"""What of booting needs no ComfyUI; the rest is in tests/cluster."""

from __future__ import annotations

import errno
import socket

import pytest

from comfyfleet.comfy.boot import _reserved_port


def tcp(*, reuse: bool) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
    return made


def connects(port: int) -> bool:
    with tcp(reuse=False) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_nobody_answers_at_a_reserved_port() -> None:
    with _reserved_port() as port:
        assert 1024 <= port.number <= 65535
        assert not connects(port.number)


def test_a_server_that_reuses_addresses_gets_it_meanwhile() -> None:
    with _reserved_port() as port, tcp(reuse=True) as server:
        server.bind(("127.0.0.1", port.number))
        server.listen()
        assert connects(port.number)


def test_nobody_else_gets_it() -> None:
    with _reserved_port() as port, tcp(reuse=False) as other:
        with pytest.raises(OSError) as caught:
            other.bind(("127.0.0.1", port.number))
        assert caught.value.errno == errno.EADDRINUSE


def test_it_is_free_afterwards_also_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), _reserved_port() as port:
        raise ZeroDivisionError
    with tcp(reuse=False) as other:
        other.bind(("127.0.0.1", port.number))


def test_reservations_differ() -> None:
    with _reserved_port() as one, _reserved_port() as two:
        assert one.number != two.number
