"""The guides for a cluster and a cloud, followed word by word: commands are read from the pages.

Only what is not here is stood in for: addresses, GPUs, scp's other end, a provider, cloudflared.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.link import DEVICE
from benchmarks.namespaces import Host, two_hosts, why_not
from tests.cloud_bed import cloudflared, provider
from tests.support import COMFYFLEET, ROOT, Master, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

#: Seconds for what has to start workers, on a busy machine.
START_S = 180.0


def blocks(page: str, heading: str, language: str = "sh") -> list[str]:
    """The code of a section, block by block."""
    section = (ROOT / "docs" / page).read_text().partition(f"\n## {heading}\n")[2]
    return re.findall(rf"```{language}\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)


class Machine:
    """A home, a ComfyUI with ComfyFleet in it, and a shell; perhaps on a host of its own."""

    def __init__(self, folder: Path, comfyui: Path, host: Host | None = None) -> None:
        self.home, self.comfyui = folder / "home", folder / "ComfyUI"
        for each in (self.home, folder / "bin"):
            each.mkdir(parents=True)
        shutil.copytree(comfyui, self.comfyui, symlinks=True)
        (self.comfyui / "custom_nodes" / "comfyfleet").symlink_to(ROOT)
        self._bin, self._host = folder / "bin", host
        self._running: list[subprocess.Popen[bytes]] = []

    def program(self, name: str, text: str) -> None:
        """Put a program on the PATH."""
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)

    def begin(self, script: str, log: Path, folder: Path, **given: str) -> subprocess.Popen[bytes]:
        """Start a script; ``end`` ends it."""
        command = ["sh", "-ec", script]
        if self._host is not None:
            command = ["ip", "netns", "exec", self._host.namespace, *command]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=self._environment(given),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def run(self, script: str, log: Path, folder: Path, **given: str) -> str:
        """Run a script to its end; what it printed."""
        assert self.begin(script, log, folder, **given).wait(2 * START_S) == 0, log.read_text()
        return log.read_text()

    def end(self) -> None:
        """As Ctrl-C in each terminal, the last one first."""
        for process in reversed(self._running):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(60)

    def _environment(self, given: Mapping[str, str]) -> dict[str, str]:
        usual = {name: os.environ[name] for name in os.environ if not name.startswith("RAY")}
        path = f"{self._bin}:{COMFYFLEET.parent}:{os.environ['PATH']}"
        own = {"HOME": str(self.home), "PATH": path, "COMFYUI_PATH": str(self.comfyui)}
        return {**usual, **own, "COLUMNS": "200", "PYTHONUNBUFFERED": "1", **given}


def seen(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: text in log.read_text() or process.poll() is not None, text, START_S)
    assert process.poll() is None, log.read_text()


@contextmanager
def machine(*given: Any) -> Iterator[Machine]:
    made = Machine(*given)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two that know a way out, as machines on a LAN do."""
    if reason := why_not():
        pytest.skip(f"no hosts here: {reason}")
    with two_hosts() as network:
        for host in network.hosts:
            route = ["ip", "-n", host.namespace, "route", "add", "default", "dev", DEVICE]
            subprocess.run([*route, "src", host.address], check=True)
        yield network.hosts


def test_from_two_pcs_to_a_cluster(
    hosts: tuple[Host, Host], comfyui: Path, tmp_path: Path, nothing_left: None
) -> None:
    texts = [
        text.replace("192.168.1.5", hosts[0].address)
        for text in blocks("cluster.md", "From two PCs to a cluster")
    ]
    head, join, run, comfy, share = texts
    folder, log = tmp_path / "one" / "ComfyUI", tmp_path / "log"
    with machine(tmp_path / "one", comfyui, hosts[0]) as one:
        seen(tmp_path / "head", "Ctrl-C ends it", one.begin(head, tmp_path / "head", one.home))
        with machine(tmp_path / "two", comfyui, hosts[1]) as two:
            two.program("scp", f'#!/bin/sh\ncp "{one.home}/${{1#*:}}" "$2"\n')
            joined = two.begin(f"{join.strip()} --cpu-slots 1", tmp_path / "join", two.home)
            seen(tmp_path / "join", "Ctrl-C to leave", joined)

            said = one.run(run.replace("16", "4"), log, folder)
            assert "4 runs saved in output" in said

            started = one.begin(f"{comfy.strip()} --cpu", tmp_path / "comfy", folder)
            seen(tmp_path / "comfy", "To see the GUI", started)
            here = "--url http://127.0.0.1:8188"  # other tests have fleets too
            one.run(f"{share.strip()} {here}", log, folder)
            shows = f"comfyfleet top --once {here}"
            wait_until(
                lambda: re.search(r"-cpu0 +idle", one.run(shows, log, folder)), "the worker", 120
            )


def test_with_a_provider(comfyui: Path, tmp_path: Path, nothing_left: None) -> None:
    token, template, cloud = blocks("cloud.md", "With Runpod")
    (launcher,) = blocks("cloud.md", "With Runpod", "yaml")
    pods, log = tmp_path / "pods", tmp_path / "log"
    pods.mkdir()
    with machine(tmp_path, comfyui) as own:
        own.run(token, log, tmp_path)
        secret = own.comfyui / "user" / "comfyfleet" / "runpod.token"
        proxied = launcher.replace(
            "https://{id}-8189.proxy.runpod.net", "http://127.0.0.1:{net.ports.0}"
        )
        secret.with_name("fleet.yaml").write_text(proxied)
        own.program("runpodctl", RUNPODCTL.format(python=sys.executable, script=provider.__file__))
        (tmp_path / "workflow.json").write_text((ROOT / "demo" / "workflow.json").read_text())
        said = own.run(
            cloud.replace("--count 64", "--count 4 --workers 0"),
            log,
            tmp_path,
            PODS=str(pods),
            COMFYUI=str(comfyui),
            TEMPLATE=in_one_machine(template),
            COMFYFLEET_TOKEN=secret.read_text().strip(),
        )
        assert said.count("worker runpod-") == 4, "two are added, and taken out"
        assert "4 runs saved in pictures" in said
        assert said.rstrip().endswith("no machine is there")
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4


#: runpodctl as far as the page uses it.
RUNPODCTL = """\
#!/bin/sh
case "$1 $2" in
  "pod create") [ "$3" = --name ] && set -- create "$4" ;;
  "pod delete") set -- delete "$3" ;;
  "pod list") [ "$3" = --all ] && set -- list ;;
esac
exec {python} {script} "$PODS" "$@"
"""


def in_one_machine(template: str) -> str:
    """What a pod runs, on the machine of all: with ports and folders that differ."""
    own = "--cpu --port {inside} --base-directory {base} --database-url sqlite:///:memory:"
    text = template.strip().replace("main.py", f"main.py {own}").replace("8189", "{port}")
    assert text.count("{port}") == 1
    return f"{text} --url http://127.0.0.1:{{inside}}"


def test_by_a_tunnel(comfyui: Path, tmp_path: Path, nothing_left: None) -> None:
    """What the command prints is typed here and there."""
    (tunnel,) = blocks("cloud.md", "A tunnel")
    log, who, said = (tmp_path / name for name in ("log", "who", "tunnel"))
    with (
        closing(Master(comfyui, tmp_path / "far", workers="0")) as far,
        machine(tmp_path / "one", comfyui) as one,
        machine(tmp_path / "two", comfyui) as two,
    ):
        script = f'#!/bin/sh\nexec "{sys.executable}" "{cloudflared.__file__}" "$@"\n'
        one.program("cloudflared", script)
        here = f"--url {far.url}"  # other tests have fleets too
        begun = one.begin(f"{tunnel.strip()} {here}", said, one.home, FAKE_LOG=str(who))
        seen(said, "add-worker", begun)
        address, pair, there, add = typed(said.read_text())
        way = f"http://127.0.0.1:{who.read_text().split()[1]}"
        code = re.search(r"[A-Z2-9]{4}-[A-Z2-9]{4}", one.run(f"{pair} {here}", log, one.home))
        assert code
        file = two.home / "far.token"  # on a machine of its own, only its ComfyUI runs
        paired = there.replace(address, way).replace("CODE", code[0])
        assert f"token_file: {file}" in two.run(f"{paired} --out {file}", log, two.home)
        words = add.replace(address, way).replace("NAME", "far").replace("FILE", str(file))
        two.run(f"{words} --comfyui {two.comfyui}", log, two.home)
        run = f"comfyfleet run {ROOT / 'demo' / 'workflow.json'} --count 2 --workers 0"
        assert "2 runs saved in" in two.run(run, log, two.home)


def typed(said: str) -> list[str]:
    """The address, and the commands that the tunnel says are to be typed."""
    address = re.search(r"https://\S+", said)
    assert address
    return [address[0], *re.findall(r"comfyfleet (?:pair|config).*", said)]
