"""A provider's command whose cloud is this machine: ``provider.py FOLDER create|list|delete ...``.

Its words and its JSON are those of runpodctl. With COMFYUI set, a machine is a real ComfyUI with
our extension; without, it is an entry in the list and nothing else. TEMPLATE is what a machine
runs in its place, with {port}, {inside} and {base} filled in. TROUBLE says what goes wrong.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

#: Given to nobody who asks for a free one: a machine that is none must stay silent.
_SILENT_PORT = 1


def create(folder: Path, name: str) -> None:
    id_, port = uuid.uuid4().hex[:12], _free_port() if "COMFYUI" in os.environ else _SILENT_PORT
    machine = {"id": id_, "name": name, "desiredStatus": "RUNNING", "net": {"ports": [port]}}
    if "COMFYUI" in os.environ:
        start = _start_template if "TEMPLATE" in os.environ else _start
        machine["pid"] = start(Path(os.environ["COMFYUI"]), folder / name, port)
    draft = folder / f"{id_}.draft"
    draft.write_text(json.dumps(machine))
    draft.replace(folder / f"{id_}.json")  # whole: others look at any moment
    if os.environ.get("TROUBLE") == "create":
        sys.exit(f"no answer in time; your key is {os.environ['PROVIDER_API_KEY']}")
    print(json.dumps(machine))


def list_(folder: Path) -> None:
    print(json.dumps([json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]))


def delete(folder: Path, id_: str) -> None:
    if os.environ.get("TROUBLE") == "delete":
        sys.exit("the service is unavailable")
    path = folder / f"{id_}.json"
    machine = json.loads(path.read_text())
    if "pid" in machine:
        os.killpg(machine["pid"], signal.SIGKILL)
    path.unlink()


def _start_template(comfyui: Path, base: Path, port: int) -> int:
    """As a pod's image: it knows its token by a variable."""
    _with_pack(base)
    script = os.environ["TEMPLATE"].format(port=port, inside=_free_port(), base=base)
    return _begin(["sh", "-ec", script], comfyui, base)


def _start(comfyui: Path, base: Path, port: int) -> int:
    """A ComfyUI whose fleet's token is that of the image, as it were."""
    _with_pack(base)
    tokens = base / "user" / "comfyfleet" / "tokens.json"
    tokens.parent.mkdir(parents=True)
    data = {"version": 1, "own": os.environ["RENTED_TOKEN"], "issued": []}
    with open(os.open(tokens, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        json.dump(data, file)
    command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory"]
    return _begin([*command, str(base), "--database-url", "sqlite:///:memory:"], comfyui, base)


def _with_pack(base: Path) -> None:
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "comfyfleet").symlink_to(Path(__file__).parents[2])


def _begin(command: list[str], comfyui: Path, base: Path) -> int:
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=comfyui,
            env={**os.environ, "COMFYFLEET_WORKERS": "0"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process.pid


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    folder, what, *rest = sys.argv[1:]
    {"create": create, "list": list_, "delete": delete}[what](Path(folder), *rest)
