"""What a fleet costs while nobody uses it: two workers with the queue shared, Ray included.

Counted are all processes that ComfyUI has started, and not ComfyUI itself. Memory that several of
them share counts once for each, as in ``top``.
"""

from __future__ import annotations

import time
from typing import Any

import psutil

from benchmarks.server import comfyui_server

_SETTLE_S = 15.0
SECONDS = 30.0


def run() -> dict[str, Any]:
    """Look at the processes for 30 seconds after they have settled."""
    with comfyui_server(workers="cpu,cpu") as server:
        server.share()
        time.sleep(_SETTLE_S)
        ours = [process for process in server.processes() if process.pid != server.pid]
        before, begun = _cpu_seconds(ours), time.perf_counter()
        time.sleep(SECONDS)
        used, seconds = _cpu_seconds(ours) - before, time.perf_counter() - begun
        memory = sum(process.memory_info().rss for process in ours)
    return {
        "processes": len(ours),
        "cpu_percent_of_one_core": round(100 * used / seconds, 2),
        "rss_mb": round(memory / 1e6),
    }


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)
