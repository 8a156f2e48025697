from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.errors import InputError
from comfyfleet.planner import Device, choose_devices, cpu_device, device_environment

UUIDS = ["5a7e4b2c-0001-4c3d-8e9f-a1b2c3d4e5f6", "5a7e4b2c-0002-4c3d-8e9f-a1b2c3d4e5f6"]
GPUS = [Device(kind="cuda", index=i, name="H200", uuid=uuid) for i, uuid in enumerate(UUIDS)]
CPU = cpu_device()
MACHINE = [*GPUS, CPU]

HIP_IDS = st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}")


def ids(devices: list[Device]) -> list[str]:
    return [device.id for device in devices]


def chosen(request: str, taken: tuple[str, ...] = ()) -> list[str]:
    return ids(choose_devices(request, MACHINE, taken))


def hip_uuid(unique_id: str) -> str:
    """As torch prints it: the ASCII codes of the id's digits, in hex, with dashes."""
    digits = unique_id.encode("ascii").hex()
    return "-".join([digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]])


def rocm(unique_id: str, index: int = 0) -> Device:
    return Device(kind="rocm", index=index, uuid=hip_uuid(unique_id))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("cuda", "cuda:2"), ("rocm", "cuda:2"), ("xpu", "xpu:2"), ("mps", "mps"), ("cpu", "cpu")],
)
def test_ids_are_those_of_torch(kind: str, expected: str) -> None:
    assert Device(kind=kind, index=2).id == expected


def test_the_cpu_says_its_cores() -> None:
    assert (CPU.kind, CPU.id) == ("cpu", "cpu")
    assert CPU.name.endswith(" cores")


def test_auto_is_every_free_accelerator() -> None:
    assert chosen("auto") == ["cuda:0", "cuda:1"]
    assert chosen("auto", taken=("cuda:0",)) == ["cuda:1"]
    assert chosen("auto", taken=("cuda:0", "cuda:1")) == []
    assert choose_devices("auto", [CPU]) == []


@pytest.mark.parametrize(
    ("request_", "taken", "expected"),
    [
        ("0", (), []),
        ("1", (), ["cuda:0"]),
        ("+2", (), ["cuda:0", "cuda:1"]),
        ("1", ("cuda:0",), ["cuda:1"]),
        ("3", ("cuda:0", "cuda:1"), ["cpu"] * 3),
    ],
)
def test_a_number_takes_the_first_free_ones(
    request_: str, taken: tuple[str, ...], expected: list[str]
) -> None:
    assert chosen(request_, taken) == expected


def test_too_many_names_what_is_free_and_what_to_write() -> None:
    with pytest.raises(InputError) as caught:
        chosen("2", taken=("cuda:0",))
    message = str(caught.value)
    assert message.startswith("2 workers, but only 1 free devices: cuda:1.")
    assert "cuda:0,cuda:0,cpu" in message


@pytest.mark.parametrize("count", ["-1", "-256", "257", "1000000"])
def test_a_number_out_of_range(count: str) -> None:
    with pytest.raises(InputError, match=f"{count} workers: give a number from 0 to 256"):
        chosen(count)


@given(st.integers(0, 4), st.integers(0, 256))
def test_a_number_gives_that_many_or_says_why_not(num_gpus: int, count: int) -> None:
    gpus = [Device(kind="cuda", index=i) for i in range(num_gpus)]
    if 0 < num_gpus < count:
        with pytest.raises(InputError):
            choose_devices(str(count), [*gpus, CPU])
        return
    expected = gpus[:count] if num_gpus else [CPU] * count
    assert choose_devices(str(count), [*gpus, CPU]) == expected


def test_a_list_is_taken_as_it_is() -> None:
    assert choose_devices("cuda:1, cpu ,cuda:1", MACHINE) == [GPUS[1], CPU, GPUS[1]]
    assert chosen("cpu,cpu") == ["cpu", "cpu"]
    assert chosen("cuda:0", taken=("cuda:0",)) == ["cuda:0"], "whoever names it wants it"


@given(st.lists(st.sampled_from(["cuda:0", "cuda:1", "cpu"]), min_size=1))
def test_any_list_of_ids_keeps_order_and_repeats(names: list[str]) -> None:
    assert chosen(",".join(names)) == names


@pytest.mark.parametrize(
    ("request_", "unknown"),
    [
        ("cuda:7", "'cuda:7'"),
        ("cuda:0,xpu:0,gpu", "'xpu:0', 'gpu'"),
        ("", "''"),
        ("cpu,", "''"),
        ("1.5", "'1.5'"),
        ("AUTO", "'AUTO'"),
    ],
)
def test_unknown_names_are_named_with_what_there_is(request_: str, unknown: str) -> None:
    with pytest.raises(InputError) as caught:
        chosen(request_)
    assert str(caught.value) == (
        f"no device {unknown} here; there is cuda:0, cuda:1, cpu. "
        "Give auto, a number of workers, or a list of these."
    )


@pytest.mark.parametrize("request_", ["+-3", "--3", "\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_what_only_looks_like_a_number(request_: str) -> None:
    with pytest.raises(InputError):
        chosen(request_)


# The environment that shows one device


@pytest.mark.parametrize("mask", [None, "", "0,1", "1,0", "3,2", f"GPU-{UUIDS[0]},GPU-{UUIDS[1]}"])
@pytest.mark.parametrize("prefix", ["", "GPU-"])
def test_cuda_by_uuid_whatever_was_inherited(mask: str | None, prefix: str) -> None:
    inherited = {} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}
    device = Device(kind="cuda", index=1, uuid=prefix + UUIDS[1])
    shown = device_environment(device, inherited, 4)["CUDA_VISIBLE_DEVICES"]
    assert shown == f"GPU-{UUIDS[1]}"


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, "1"),
        ("", "1"),
        ("4,7", "7"),
        ("4,7,", "7"),
        ("GPU-aa,GPU-bb", "GPU-bb"),
        ("MIG-aa,MIG-bb", "MIG-bb"),
    ],
)
def test_cuda_without_uuid_follows_the_inherited_mask(mask: str | None, expected: str) -> None:
    inherited = {} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}
    shown = device_environment(Device(kind="cuda", index=1), inherited, 4)
    assert shown["CUDA_VISIBLE_DEVICES"] == expected


def test_a_mig_slice_is_named_as_inherited_and_not_by_torchs_uuid() -> None:
    inherited = {"CUDA_VISIBLE_DEVICES": f"MIG-{UUIDS[0]},MIG-{UUIDS[1]}"}
    shown = device_environment(GPUS[1], inherited, 4)
    assert shown["CUDA_VISIBLE_DEVICES"] == f"MIG-{UUIDS[1]}"


@given(st.lists(st.integers(0, 63), unique=True, min_size=1), st.data())
def test_an_index_counts_within_the_mask(physical: list[int], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(physical) - 1))
    inherited = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, physical))}
    shown = device_environment(Device(kind="cuda", index=index), inherited, 1)
    assert shown["CUDA_VISIBLE_DEVICES"] == str(physical[index])


@given(HIP_IDS)
def test_rocm_by_the_id_that_its_uuid_spells(unique_id: str) -> None:
    inherited = {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"}
    shown = device_environment(rocm(unique_id), inherited, 4)
    assert shown == {
        "OMP_NUM_THREADS": None,
        "ROCR_VISIBLE_DEVICES": f"GPU-{unique_id}",
        "HIP_VISIBLE_DEVICES": None,
        "CUDA_VISIBLE_DEVICES": None,
    }


@pytest.mark.parametrize("uuid", ["", "no hex", hip_uuid("notahexnumber!!!"), "ff" * 16, UUIDS[0]])
def test_rocm_without_such_an_id_goes_by_index(uuid: str) -> None:
    device = Device(kind="rocm", index=1, uuid=uuid)
    assert device_environment(device, {}, 4)["HIP_VISIBLE_DEVICES"] == "1"
    shown = device_environment(device, {"HIP_VISIBLE_DEVICES": "5,6"}, 4)
    assert shown["HIP_VISIBLE_DEVICES"] == "6"
    assert "ROCR_VISIBLE_DEVICES" not in shown, "an inherited one stays"


def test_rocm_by_index_follows_a_cuda_mask() -> None:
    shown = device_environment(Device(kind="rocm", index=1), {"CUDA_VISIBLE_DEVICES": "5,6"}, 4)
    assert shown["HIP_VISIBLE_DEVICES"] == "6"


@pytest.mark.parametrize(("mask", "expected"), [(None, "1"), ("2,3", "3"), ("0.0,0.1", "0.1")])
def test_xpu_by_its_affinity_mask(mask: str | None, expected: str) -> None:
    inherited = {} if mask is None else {"ZE_AFFINITY_MASK": mask}
    shown = device_environment(Device(kind="xpu", index=1), inherited, 4)
    assert shown == {"OMP_NUM_THREADS": None, "ZE_AFFINITY_MASK": expected}


def test_mps_needs_no_mask() -> None:
    assert device_environment(Device(kind="mps"), {}, 4) == {"OMP_NUM_THREADS": None}


def test_cpu_workers_see_no_gpu_and_share_the_cores() -> None:
    shown = device_environment(CPU, {"CUDA_VISIBLE_DEVICES": "0,1"}, 3)
    assert shown == {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("device", [CPU, GPUS[0], Device(kind="mps")])
def test_an_owners_number_of_threads_stays(device: Device) -> None:
    assert device_environment(device, {"OMP_NUM_THREADS": "7"}, 3)["OMP_NUM_THREADS"] == "7"
