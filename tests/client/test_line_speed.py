"""Is a line slow enough for compression? Judged by the first pieces of a result, and not by one
moment in which this machine was busy."""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace

import pytest
from aiohttp import web

from comfyfleet.api.guest import PROTOCOL
from tests.client.hostile import GUEST, Hostile, play, run_unit
from tests.client.test_hostile_answers import answering, value

SIZE = 3 << 20
#: Seconds for 256 KiB: of a fast line, of a busy moment, of a slow line.
FAST, BUSY, SLOW = 0.001, 0.02, 0.1


@pytest.mark.parametrize(
    ("took", "asked"),
    [
        ([FAST], ["raw", "raw"]),
        ([BUSY, FAST], ["raw", "raw", "raw"]),
        ([BUSY, BUSY], ["raw", "raw", "filter-zstd"]),
        ([SLOW], ["raw", "filter-zstd"]),
    ],
)
def test_a_busy_moment_is_no_slow_line(
    took: list[float], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    async def pieces(request: web.Request) -> web.StreamResponse:
        if "encoding" not in request.query:
            return await manifest(request)
        encoding = request.query["encoding"]
        if encoding != "raw":
            seen.append(encoding)
            raise web.HTTPNotFound  # its bytes are no matter here
        seen.append(encoding)
        return web.Response(body=bytes(int(request.query["stop"]) - int(request.query["start"])))

    manifest = answering(
        value([0, "uint8", [1, 1, SIZE, 1]], [SIZE]), content_type="application/json"
    )
    hostile = Hostile()
    hostile.instead[f"{GUEST}/hello"] = answering({"comfyfleet": "1", "protocol": PROTOCOL})
    hostile.instead[f"{GUEST}/prompts"] = pieces
    times = [0.0, *accumulate(each for seconds in took for each in (seconds, 1.0))]
    clock = SimpleNamespace(monotonic=iter(times).__next__)
    monkeypatch.setattr("comfyfleet.client.guest.time", clock)
    if "filter-zstd" in asked:
        with pytest.raises(Exception, match="answered 404"):
            play(hostile, run_unit)
    else:
        play(hostile, run_unit)
    assert list(dict.fromkeys(seen)) == list(dict.fromkeys(asked))
    assert seen.count("raw") == asked.count("raw")
