"""One embedded Ray, private to this process: loopback only, with a token, in its own folder.

Ray runs the code of whoever can reach it. So it is never started without token authentication,
and an embedded one is told to stay on the loopback interface. A guard process removes all of it
when the owner ends, also when the owner is killed.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from comfyfleet.errors import FleetError
from comfyfleet.fleet import guard
from comfyfleet.fleet.registry import PREFIX, sessions_root

#: The folder that holds this package, in a checkout and in an installation.
_SOURCES = Path(__file__).resolve().parents[2]

#: Shared memory for results on their way; Ray spills to disk beyond it.
OBJECT_STORE_BYTES = 2 * 1024**3

#: Ray's variables for a private Ray.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's own switch for "no cluster": every socket of it is bound to 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray would blank CUDA_VISIBLE_DEVICES for actors that ask for no GPU; we choose devices.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # ComfyUI offloads models into memory until it is nearly full, which is no reason to kill it.
    "RAY_memory_monitor_refresh_ms": "0",
    # Ray would start workers with a niceness of 15: whatever else computes on the machine, this
    # ComfyUI too, would leave them next to nothing of a busy CPU, and their GPU would wait.
    "RAY_worker_niceness": "0",
}


#: One for the life of this process, as Ray's library keeps the first that it sees.
_token = secrets.token_hex(32)
#: The settings with which Ray was loaded into this process, but for the file with its token.
_loaded_with: Mapping[str, str] | None = None


class Session:
    """The folder, the token and the guard of one fleet, and the Ray that lives in it.

    ``start`` and ``stop`` must run on one thread that lives as long as the session: Ray's
    processes get a parent-death signal when the thread that started them ends.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=sessions_root()))
        self._guard = subprocess.Popen(
            [sys.executable, guard.__file__, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def worker_folder(self, name: str) -> Path:
        """A folder of a worker's own for its temp files, database, log and outputs."""
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        return folder

    def start(self) -> None:
        """Start Ray. Raises FleetError if another pack uses Ray here, or if it does not start."""
        settings = self._settings()
        ray = _import_ray(settings)
        # Ray notes that it sets no signal handler outside the main thread, which is as it should.
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            with _environment(**self._inherited()):
                self._connect(ray)
        except FleetError:
            raise
        except Exception as error:
            raise FleetError(f"Ray did not start: {type(error).__name__}: {error}") from error

    def stop(self) -> None:
        """Shut Ray down."""
        import ray

        ray.shutdown()

    def close(self, timeout_s: float = 5.0) -> None:
        """End what is left and remove the folder. Safe on any thread, and after anything."""
        if self._guard.stdin and not self._guard.stdin.closed:
            self._guard.stdin.close()
        try:
            self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            guard.sweep(str(self.folder))

    def _settings(self) -> dict[str, str]:
        """Ray's variables for this whole process."""
        return {**RAY_ENVIRONMENT, "RAY_AUTH_TOKEN_PATH": str(self.write_token(_token))}

    def _connect(self, ray: Any) -> None:
        ray.init(**self._options())

    def write_token(self, token: str) -> Path:
        """A file of the folder with this token, for this user's eyes alone."""
        path = self.folder / "token"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
        return path

    def _inherited(self) -> dict[str, str]:
        """What Ray's processes, and no others of this one, get: the mark, and where we lie.

        Installed as a custom node, this package is on ``sys.path`` of the master alone.
        """
        return {guard.SESSION_MARK: str(self.folder), "PYTHONPATH": python_path()}

    def _options(self) -> dict[str, Any]:
        return {
            "address": "local",
            "num_cpus": 0,
            "num_gpus": 0,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "log_to_driver": False,
            "configure_logging": False,
            # Below our own folder: Ray opens the one that it is given to everybody.
            "_temp_dir": str(self.folder / "ray"),
        }


def python_path() -> str:
    """PYTHONPATH for processes that import this package."""
    path = [str(_SOURCES), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(entry for entry in path if entry)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """These variables, and afterwards what was there before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _import_ray(settings: Mapping[str, str]) -> ModuleType:
    """Ray with our settings. Its library reads them once, at import, for the whole process."""
    global _loaded_with
    lasting = {name: value for name, value in settings.items() if name != "RAY_AUTH_TOKEN_PATH"}
    foreign = "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token"
    if foreign and _loaded_with is None:
        raise FleetError(
            "another pack has loaded Ray into this process without token authentication, and "
            "ComfyFleet never starts Ray without it. Disable that pack, or start ComfyUI with "
            "RAY_AUTH_MODE=token and a RAY_AUTH_TOKEN of your own."
        )
    if _loaded_with not in (None, lasting):
        raise FleetError(
            "this process has used Ray in another way before (alone, or in a cluster), and Ray "
            "cannot change that. Start this program again."
        )
    os.environ.update(settings)
    _loaded_with = lasting
    return importlib.import_module("ray")
