"""The wire between two hosts, as a program: it delays packets, holds them to a rate, or is cut.

    python link.py NAMESPACE NAMESPACE

makes a network device in each of two network namespaces and carries packets between them. It is
told by lines on its standard input: ``shape SECONDS BITS_PER_SECOND`` (0: no limit; each way),
``cut`` and ``heal``. It ends when its standard input does, and its devices with it. In software, as
not every Linux can do so by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import selectors
import struct
import sys
import time
from dataclasses import dataclass

DEVICE = "link0"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU = 1500
#: What waits for its turn in one direction; more is dropped, as every router does.
_BUFFER_S = 0.5


@dataclass(slots=True)
class _Shape:
    delay_s: float = 0.0
    bits_per_s: float = 0.0
    cut: bool = False


class _Direction:
    """Packets on their way to one end."""

    def __init__(self, target: int, shape: _Shape) -> None:
        self._target = target
        self._shape = shape
        self._free_at = 0.0
        self._waiting: list[tuple[float, int, bytes]] = []
        self._count = 0

    @property
    def next_at(self) -> float | None:
        return self._waiting[0][0] if self._waiting else None

    def take(self, packet: bytes, now: float) -> None:
        shape = self._shape
        if shape.cut or self._free_at - now > _BUFFER_S:
            return
        sent_s = len(packet) * 8 / shape.bits_per_s if shape.bits_per_s else 0.0
        self._free_at = max(now, self._free_at) + sent_s
        self._count += 1
        heapq.heappush(self._waiting, (self._free_at + shape.delay_s, self._count, packet))

    def give(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            packet = heapq.heappop(self._waiting)[2]
            if not self._shape.cut:
                with contextlib.suppress(OSError):  # the device is not up, or its buffer is full
                    os.write(self._target, packet)


def _enter(namespace: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    entry = os.open(namespace, os.O_RDONLY)
    if libc.setns(entry, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    os.close(entry)


def _open_device(namespace: str) -> int:
    """A network device in a namespace; this process enters it for that, and comes back."""
    own = f"/proc/{os.getppid()}/ns/net"
    _enter(f"/run/netns/{namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(device, _TUNSETIFF, request)
    _enter(own)
    return device


def _obey(line: str, shape: _Shape) -> None:
    word, *values = line.split()
    if word == "shape":
        shape.delay_s, shape.bits_per_s = map(float, values)
    elif word in ("cut", "heal"):
        shape.cut = word == "cut"
    else:
        raise ValueError(f"no order {line!r}")


def main() -> None:
    ends = [_open_device(name) for name in sys.argv[1:3]]
    shape = _Shape()
    ways = {ends[0]: _Direction(ends[1], shape), ends[1]: _Direction(ends[0], shape)}
    watched = selectors.DefaultSelector()
    for end in ends:
        watched.register(end, selectors.EVENT_READ)
    watched.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        due = [at for way in ways.values() if (at := way.next_at) is not None]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in watched.select(wait_s):
            if key.fileobj is sys.stdin:
                line = sys.stdin.readline()
                if not line:
                    return
                _obey(line, shape)
                print("done", flush=True)
            else:
                _read(key.fd, ways[key.fd])
        for way in ways.values():
            way.give(time.monotonic())


def _read(end: int, way: _Direction) -> None:
    try:
        while True:
            way.take(os.read(end, _MTU + 100), time.monotonic())
    except BlockingIOError:
        return


if __name__ == "__main__":
    main()
