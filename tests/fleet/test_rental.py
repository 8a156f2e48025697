"""What goes wrong with rented machines: none is forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfyfleet.config import load
from comfyfleet.errors import ComfyFleetError, FleetError, InputError
from comfyfleet.fleet.launcher import Launcher
from comfyfleet.fleet.rental import ALL, give_back, gone, rent
from tests.cloud_bed.bed import TOKEN, launcher, machines, written


class Cloud:
    """A provider without machines, and a fleet.yaml that knows it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder / "cloud", folder / "fleet.yaml"
        self.folder.mkdir()
        self.told: list[str] = []

    def launcher(self, workers: Any = (), **changes: Any) -> Launcher:
        entry = launcher(self.folder, start_timeout=1, **changes)
        written(self.path, entry, workers=list(workers))
        return Launcher(load(self.path), "rented", self.told.append, pause_s=0.01, listed_s=0.05)

    def rent(self, count: int = 1, **changes: Any) -> str:
        """What is said of the failure."""
        with pytest.raises(ComfyFleetError) as caught:
            rent(self.path, self.launcher(**changes), count, self.told.append)
        return str(caught.value)

    @property
    def said(self) -> str:
        return "\n".join(self.told)


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    monkeypatch.setenv("RENTED_TOKEN", TOKEN)
    monkeypatch.setenv("PROVIDER_API_KEY", "key-of-the-owner")
    return Cloud(tmp_path)


def test_machines_that_never_answer_are_ended(cloud: Cloud) -> None:
    assert "did not answer in 1 s" in cloud.rent(2)
    assert machines(cloud.folder) == [] and load(cloud.path).workers == []
    assert cloud.said.count("has ended") == 2


def test_a_start_that_fails_after_the_machine_was_made(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROUBLE", "create")
    failure = cloud.rent()
    assert "start ended with 1" in failure and "your key is (secret)" in failure
    assert machines(cloud.folder) == []


def test_a_machine_that_cannot_be_ended_is_named(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROUBLE", "delete")
    cloud.rent()
    (machine,) = machines(cloud.folder)
    assert f"(id {machine['id']}) may still run and cost money" in cloud.said
    assert f"delete {machine['id']}" in cloud.said.splitlines()[-1]
    with pytest.raises(FleetError, match=f"id {machine['id']}.* may still run"):
        give_back(cloud.path, cloud.launcher(), ALL, cloud.told.append)
    monkeypatch.delenv("TROUBLE")
    give_back(cloud.path, cloud.launcher(), machine["id"], cloud.told.append)
    assert machines(cloud.folder) == []


def test_no_more_than_the_most(cloud: Cloud) -> None:
    assert "may have 2 machines at once and has 0" in cloud.rent(3)
    assert machines(cloud.folder) == []


def test_machines_of_others_are_left_alone(cloud: Cloud) -> None:
    own = cloud.launcher()
    for name in ("rented", "rented-studio", "rented-0123456", "other-01234567", "rented-0123abcd"):
        own.start(name)
    assert [each.name for each in own.machines()] == ["rented-0123abcd"]
    give_back(cloud.path, own, ALL, cloud.told.append)
    give_back(cloud.path, own, "rented-studio", cloud.told.append)
    assert len(machines(cloud.folder)) == 4 and "nothing to stop" in cloud.said


def test_workers_whose_machines_are_gone(cloud: Cloud) -> None:
    named = [{"name": name, "url": "http://x"} for name in ("rented-0123abcd", "studio")]
    own = cloud.launcher(named)
    assert gone(cloud.path, own, []) == ["rented-0123abcd"]
    give_back(cloud.path, own, ALL, cloud.told.append)
    assert [each.name for each in load(cloud.path).workers] == ["studio"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"list": ["no-such-program-at-all"]}, "cannot be run"),
        ({"list": ["echo", "hello"]}, "printed no JSON"),
        ({"list": ["echo", "{}"]}, "has no list; set items"),
        ({"list": ["false"]}, "list ended with 1"),
        ({"list": ["echo", '[{"name": "rented-0123abcd", "id": "--all"}]']}, "has no id that can"),
    ],
)
def test_a_provider_that_talks_nonsense(cloud: Cloud, changes: Any, said: str) -> None:
    with pytest.raises(ComfyFleetError, match=said):
        cloud.launcher(**changes).machines()


def test_addresses_are_made_of_what_is_listed(cloud: Cloud) -> None:
    listed = '{"a": {"b": [{"label": "rented-0123abcd", "n": 7, "ip": {"public": "10.0.0.1"}}]}}'
    where = {"list": ["echo", listed], "items": "a.b", "id_key": "n", "name_key": "label"}
    (machine,) = cloud.launcher(url="https://{ip.public}:{id}", **where).machines()
    assert (machine.id, machine.url) == ("7", "https://10.0.0.1:7")
    assert cloud.launcher(url="https://{not.yet}", **where).machines()[0].url == ""


def test_without_its_token_nothing_is_started(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RENTED_TOKEN")
    with pytest.raises(InputError, match="token_env names what is empty"):
        cloud.launcher()
    with pytest.raises(InputError, match="has no launcher 'other'; it has rented"):
        Launcher(load(cloud.path), "other", cloud.told.append)
