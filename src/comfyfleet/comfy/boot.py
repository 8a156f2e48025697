"""Boot one ComfyUI inside this process: its own classes, its own HTTP server, on a loopback port.

``boot`` runs once per process, on the main thread: packs install signal handlers at import, which
only the main thread may do. ComfyUI's event loop then runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from comfyfleet.errors import FleetError

T = TypeVar("T")

_SCRIPT_ENVIRONMENT = {
    "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

#: A node of ours: when ComfyUI has it, our pack is among its custom nodes already.
_OWN_NODE = "FleetReturn"

# ComfyUI wraps sys.stdout and sys.stderr around the same buffers. If the objects that it replaced
# were collected, they would close these buffers: so every stream object lives as long as we do.
_kept_streams: list[Any] = []


@dataclass(frozen=True, slots=True)
class RunningComfy:
    """A ComfyUI that answers on ``http://127.0.0.1:port``; ``loop`` runs in its own thread."""

    loop: asyncio.AbstractEventLoop
    port: int
    version: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine on ComfyUI's loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)


def redirect_output(log_file: Path) -> None:
    """Send everything that this process prints, C libraries included, to ``log_file``."""
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _kept_streams.extend([sys.stdout, sys.stderr])
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(os.dup(log), "w", buffering=1, encoding="utf-8", errors="replace")
    sys.stderr = os.fdopen(log, "w", buffering=1, encoding="utf-8", errors="replace")
    _kept_streams.extend([sys.stdout, sys.stderr])


def boot(comfyui: Path, flags: Sequence[str], *, pack: Path, folder: Path) -> RunningComfy:
    """Start the ComfyUI that lies in ``comfyui`` with these command-line flags.

    ``pack`` is our own folder: it is loaded as a custom node unless ComfyUI has found it already.
    Log files that ComfyUI writes by itself go into ``folder``.
    """
    with _reserved_port() as port:
        address = ("--listen", "127.0.0.1", "--port", str(port.number))
        main = _import_main(comfyui, [*flags, *address], folder)
        loop, _server, start_all = main.start_comfyui()
        loop.run_until_complete(_load_own_nodes(pack))
        thread = threading.Thread(
            target=_serve, args=(loop, start_all), daemon=True, name="comfyui"
        )
        thread.start()
        _end_with(main.prompt_worker)
        _wait_until_listening(port.number, thread)
    _kept_streams.extend([sys.stdout, sys.stderr])
    _keep_from_collector()
    version = importlib.import_module("comfyui_version").__version__
    return RunningComfy(loop=loop, port=port.number, version=version)


class _reserved_port:
    """Hold a free port, bound but not listening, until ComfyUI listens on it.

    With SO_REUSEADDR, which asyncio sets as well, a second bind is allowed while nobody listens;
    the kernel gives the port to nobody else meanwhile.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def __enter__(self) -> _reserved_port:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def _import_main(comfyui: Path, flags: list[str], folder: Path) -> Any:
    sys.argv = [str(comfyui / "main.py"), *flags]
    sys.path.insert(0, str(comfyui))
    # What main.py does only as a script, and before torch is imported.
    for name, value in _SCRIPT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "--deterministic" in flags:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()
    _keep_logs_in(folder)
    importlib.import_module("cuda_malloc")
    return importlib.import_module("main")


def _keep_logs_in(folder: Path) -> None:
    """Newer ComfyUI also logs into files of the current folder, which workers share: move them."""
    logger: Any = importlib.import_module("app.logger")
    setup = logger.setup_logger

    def moved(*args: Any, file_outputs: Sequence[tuple[str, str]] = (), **options: Any) -> None:
        if file_outputs:
            own = [(level, str(folder / Path(name).name)) for level, name in file_outputs]
            options["file_outputs"] = own
        setup(*args, **options)

    logger.setup_logger = moved


async def _load_own_nodes(pack: Path) -> None:
    nodes = importlib.import_module("nodes")
    if _OWN_NODE in nodes.NODE_CLASS_MAPPINGS:
        return
    if not await nodes.load_custom_node(str(pack), module_parent="custom_nodes"):
        raise FleetError(
            f"ComfyUI could not load ComfyFleet's nodes from {pack}: see its log above."
        )


def _serve(loop: asyncio.AbstractEventLoop, start_all: Any) -> None:
    asyncio.set_event_loop(loop)
    loop.run_until_complete(start_all())


def _end_with(prompt_worker: Any) -> None:
    """End this process when ComfyUI's prompt thread does: without it, prompts would wait for ever.

    A node that calls sys.exit ends that thread, and so does a prompt that ComfyUI takes badly.
    """
    running = [t for t in threading.enumerate() if getattr(t, "_target", None) is prompt_worker]

    def watch(thread: threading.Thread) -> None:
        thread.join()
        logging.error("ComfyUI's prompt thread has ended, and this process with it")
        os._exit(1)

    for thread in running:
        threading.Thread(target=watch, args=(thread,), daemon=True).start()


def _keep_from_collector() -> None:
    """Let garbage collections pass over what was imported: it stays until this process ends.

    ComfyUI collects after prompts, every ten seconds, and went through all of it each time.
    """
    gc.collect()
    gc.freeze()


def _wait_until_listening(port: int, thread: threading.Thread) -> None:
    pause = threading.Event()
    while thread.is_alive():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        pause.wait(0.02)
    raise FleetError("ComfyUI's server stopped while it started: see its log above.")
