from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.config import WORKER_MARK
from comfyfleet.fleet.spec import (
    Host,
    WorkerSpec,
    inherited_flags,
    worker_id,
    worker_ids,
    worker_specs,
)
from comfyfleet.planner import Device, cpu_device

CUDA0, CUDA1 = (Device(kind="cuda", index=i, uuid=f"0000000{i}") for i in range(2))
CPU = cpu_device()

#: Flags of one process, alone or with a value, in all forms that ComfyUI takes.
OWN = [
    ["--listen"],
    ["--listen", "0.0.0.0,::"],
    ["--listen=127.0.0.1"],
    ["--port", "8188"],
    ["--port=8188"],
    ["--tls-keyfile", "key.pem"],
    ["--tls-certfile", "cert.pem"],
    ["--enable-cors-header"],
    ["--enable-cors-header", "*"],
    ["--auto-launch"],
    ["--disable-auto-launch"],
    ["--windows-standalone-build"],
    ["--quick-test-for-ci"],
    ["--cuda-device", "1"],
    ["--cuda-device=1"],
    ["--default-device", "0"],
    ["--oneapi-device-selector", "gpu:0"],
    ["--cpu"],
    ["--temp-directory", "my temp"],
    ["--database-url", "sqlite:///:memory:"],
    ["--enable-manager"],
    ["--enable-assets"],
]
#: All others, known to us or not.
OTHERS = [
    ["--lowvram"],
    ["--fast"],
    ["--fast", "fp16_accumulation", "cublas_ops"],
    ["--preview-method", "auto"],
    ["--preview-method=auto"],
    ["--cache-lru", "-1"],
    ["--extra-model-paths-config", "a b.yaml", "c.yaml"],
    ["--output-directory", "/data/my pictures"],
    ["--base-directory", "base"],
    ["--a-flag-of-tomorrow", "3"],
    ["--portable"],
    ["--cpu-vae"],
]


def made(devices: list[Device], *flags: str, base: str = "/session") -> list[WorkerSpec]:
    return worker_specs(
        devices,
        Host(comfyui=Path("/comfyui"), flags=flags, cwd=Path("/cwd")),
        folder_of={name: Path(base) / name for name in worker_ids(devices)},
        pack=Path("/pack"),
    )


def value_of(spec: WorkerSpec, flag: str) -> str:
    assert spec.flags.count(flag) == 1
    return spec.flags[spec.flags.index(flag) + 1]


@pytest.mark.parametrize("own", OWN, ids=" ".join)
def test_own_flags_are_dropped_with_their_values(own: list[str]) -> None:
    assert inherited_flags(own) == []
    assert inherited_flags(["--lowvram", *own, "--fast"]) == ["--lowvram", "--fast"]


@pytest.mark.parametrize("other", OTHERS, ids=" ".join)
def test_other_flags_are_kept_as_they_are(other: list[str]) -> None:
    assert inherited_flags(other) == other
    assert inherited_flags(["--port", "1", *other, "--cpu"]) == other


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 99))))
def test_any_mixture_keeps_the_others_in_order(picks: list[tuple[bool, int]]) -> None:
    parts = [(own, (OWN if own else OTHERS)[at % len(OWN if own else OTHERS)]) for own, at in picks]
    flags = [word for _, part in parts for word in part]
    assert inherited_flags(flags) == [word for own, part in parts if not own for word in part]


def test_a_flag_that_begins_like_one_of_ours_is_another() -> None:
    assert inherited_flags(["--portal", "x", "--cpu-vae"]) == ["--portal", "x", "--cpu-vae"]


def test_an_abbreviated_own_flag_is_dropped() -> None:
    assert inherited_flags(["--cuda-dev", "1"]) == []


def test_nothing_is_changed_in_place() -> None:
    flags = ("--port", "8188", "--lowvram")
    inherited_flags(flags)
    assert flags == ("--port", "8188", "--lowvram")


@pytest.mark.parametrize(
    ("device", "number", "expected"),
    [(CUDA1, 0, "cuda1"), (CUDA1, 2, "cuda1-2"), (CPU, 0, "cpu-0"), (Device(kind="mps"), 0, "mps")],
)
def test_names_say_the_device(device: Device, number: int, expected: str) -> None:
    assert worker_id(device, number) == expected


def test_workers_on_equal_devices_are_counted() -> None:
    devices = [CUDA0, CPU, CUDA0, CUDA1, CPU]
    assert worker_ids(devices) == ["cuda0", "cpu-0", "cuda0-1", "cuda1", "cpu-1"]
    assert worker_ids([]) == []


DEVICES = st.builds(
    Device, kind=st.sampled_from(["cuda", "rocm", "xpu", "mps", "cpu"]), index=st.integers(0, 12)
)


@given(st.lists(DEVICES, max_size=24))
def test_names_differ_and_fit_into_paths(devices: list[Device]) -> None:
    names = worker_ids(devices)
    assert len(set(names)) == len(devices)
    for name, device in zip(names, devices, strict=True):
        assert name.startswith(device.id.replace(":", ""))
        assert name.replace("-", "").isalnum() and len(name) < 12


def test_each_worker_has_its_own_folder_database_and_log() -> None:
    specs = made([CUDA0, CPU])
    assert [spec.id for spec in specs] == ["cuda0", "cpu-0"]
    for spec in specs:
        folder = Path("/session") / spec.id
        assert (spec.folder, spec.log_file) == (folder, folder / "comfyui.log")
        assert value_of(spec, "--temp-directory") == str(folder)
        assert value_of(spec, "--database-url") == f"sqlite:///{folder}/comfyui.db"
        assert "--disable-auto-launch" in spec.flags
        assert (spec.pack, spec.host.cwd) == (Path("/pack"), Path("/cwd"))


def test_masters_flags_come_first_and_its_own_not_at_all() -> None:
    (spec,) = made([CUDA0], "--listen", "--port", "8188", "--temp-directory", "/t", "--lowvram")
    assert spec.flags[0] == "--lowvram"
    assert not {"--listen", "--port", "8188", "/t"} & set(spec.flags)


def test_only_cpu_devices_get_the_cpu_flag() -> None:
    by_id = {spec.id: spec.flags for spec in made([CUDA0, CPU, Device(kind="mps")], "--cpu")}
    assert {name: "--cpu" in flags for name, flags in by_id.items()} == {
        "cuda0": False,
        "cpu-0": True,
        "mps": False,
    }


@pytest.mark.parametrize("flag", ["--gpu-only", "--highvram", "--normalvram", "--lowvram"])
def test_a_cpu_worker_gets_no_flag_about_video_memory(flag: str) -> None:
    (spec,) = made([CPU], flag)
    assert flag not in spec.flags


def test_a_worker_saves_into_its_own_folder() -> None:
    for spec in made([CUDA0, CPU]):
        assert value_of(spec, "--output-directory") == str(spec.folder / "output")


def test_its_own_folder_wins_over_the_masters() -> None:
    (spec,) = made([CPU], "--output-directory", "/pictures")
    last = len(spec.flags) - 1 - spec.flags[::-1].index("--output-directory")
    assert spec.flags[last + 1] == str(spec.folder / "output")


def test_the_environment_marks_the_worker_and_shows_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    specs = made([CUDA1, CPU, CPU, CPU])
    assert [spec.environment[WORKER_MARK] for spec in specs] == [spec.id for spec in specs]
    assert [spec.environment["OMP_NUM_THREADS"] for spec in specs] == [None, "2", "2", "2"]
    shown = [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs]
    assert shown == ["GPU-00000001", "", "", ""]


def test_more_cpu_workers_than_cores_get_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert {spec.environment["OMP_NUM_THREADS"] for spec in made([CPU] * 5)} == {"1"}
