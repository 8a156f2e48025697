"""A real fleet in this process: what workers are, what comes back, and who can reach it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import comfyfleet
from comfyfleet.errors import RunCancelled, RunFailed
from comfyfleet.fleet import Fleet, new_run_id
from comfyfleet.work import Result, Unit
from tests import prompts
from tests.support import marked_processes, wait_until

pytestmark = pytest.mark.cluster


def units(*unit_prompts: dict) -> list[Unit]:
    run_id = new_run_id()
    return [Unit(run_id=run_id, index=i, prompt=prompt) for i, prompt in enumerate(unit_prompts)]


def returning(prompt: dict, link: list) -> dict:
    """The prompt with its save node replaced by a return of ``link``."""
    kept = {node_id: node for node_id, node in prompt.items() if node_id != "7"}
    return {**kept, "return": {"class_type": "FleetReturn", "inputs": {"value": link}}}


def run(fleet: Fleet, *unit_prompts: dict) -> list[Result]:
    running = fleet.submit(units(*unit_prompts))
    assert running.wait(240)
    return [delivery.result for delivery in running.results()]


def test_two_workers_each_with_a_process_of_its_own(fleet: Fleet) -> None:
    workers = fleet.workers
    assert [worker.id for worker in workers] == ["cpu-0", "cpu-1"]
    assert len({worker.pid for worker in workers} | {os.getpid()}) == 3
    assert len({worker.comfyui_version for worker in workers}) == 1


def test_workers_have_the_priority_of_their_owner(fleet: Fleet) -> None:
    """Ray's own, the lowest but for some, would leave them nothing of a busy CPU."""
    own = psutil.Process().nice()
    assert [psutil.Process(worker.pid).nice() for worker in fleet.workers] == [own, own]


def test_latents_come_back_bit_by_bit_from_either_worker(fleet: Fleet) -> None:
    """The same unit eight times: both workers take some, and all results are the same bits."""
    prompt = returning(prompts.demo(steps=3), ["5", 0])
    running = fleet.submit(units(*[prompt] * 8))
    running.wait(240)
    deliveries = running.results()
    assert {delivery.worker_id for delivery in deliveries} == {"cpu-0", "cpu-1"}
    packed = [delivery.result.values for delivery in deliveries]
    assert len({each.buffers[0].tobytes() for each in packed if each is not None}) == 1
    ref = packed[0].skeleton["value"][0]["samples"]
    assert ref.dtype == "float32" and ref.shape[0] == 1 and ref.shape[2:] == (16, 16)


def test_saved_files_come_home_with_the_units_own_seed_in_them(fleet: Fleet) -> None:
    results = run(fleet, prompts.demo(seed=3), prompts.demo(seed=4))
    files = [result.files for result in results]
    assert [len(each) for each in files] == [1, 1]
    assert b'"seed": 3' in files[0][0].data and b'"seed": 4' in files[1][0].data


def test_an_equal_unit_gives_its_files_again(fleet: Fleet) -> None:
    """All of it is in the worker's cache the second time; the files are not."""
    prompt = prompts.demo(seed=9)
    for _ in range(3):
        assert [len(result.files) for result in run(fleet, prompt, prompt)] == [1, 1]


def test_check_names_node_class_and_remedy(fleet: Fleet) -> None:
    prompt = prompts.demo()
    prompt["5"]["inputs"]["sampler_name"] = "no_such_sampler"
    problems = [str(problem) for problem in fleet.check(prompt)]
    assert len(problems) == 1
    assert problems[0].startswith("node 5 (KSampler): input sampler_name: Value not in list")


def test_check_names_an_unknown_class(fleet: Fleet) -> None:
    prompt = prompts.demo()
    prompt["6"]["class_type"] = "NoSuchNode"
    (problem,) = fleet.check(prompt)
    assert str(problem).startswith("node 6 (NoSuchNode): this ComfyUI has no such node class")


def test_a_unit_that_fails_everywhere_fails_the_run_with_the_traceback(fleet: Fleet) -> None:
    prompt = prompts.empty_images(sizes="-5", shares=1)
    running = fleet.submit(units(prompt, prompts.demo()))
    with pytest.raises(RunFailed, match=r"node 2 \(EmptyImage\)[\s\S]*nodes.py"):
        running.wait(120)
    assert run(fleet, prompts.demo())[0].files, "the workers go on"


def test_a_model_cannot_leave_its_process_and_says_so(fleet: Fleet) -> None:
    running = fleet.submit(units(returning(prompts.demo(), ["1", 0])))
    with pytest.raises(RunFailed, match="ModelPatcher, which cannot leave the process"):
        running.wait(120)


def test_cancel_interrupts_what_runs(fleet: Fleet) -> None:
    running = fleet.submit(units(*[prompts.demo(seed=i, steps=5000) for i in range(4)]))
    wait_until(lambda: _log(fleet).count("5000") >= 2, "both workers to sample")
    running.cancel("enough")
    with pytest.raises(RunCancelled, match="enough"):
        running.wait(120)
    assert run(fleet, prompts.demo())[0].files


def test_an_observer_hears_of_start_progress_and_delivery(fleet: Fleet) -> None:
    heard = []
    running = fleet.submit(units(prompts.demo(seed=77, steps=400)), heard.append)
    running.wait(120)
    kinds = [event.kind for event in heard]
    assert kinds[0] == "started" and kinds[-1] == "delivered" and "progress" in kinds
    fractions = [event.fraction for event in heard if event.kind == "progress"]
    assert fractions == sorted(fractions) and 0 <= fractions[0] <= fractions[-1] <= 1


def listening_at(process: psutil.Process) -> set[tuple[str, str, int]]:
    """Where it listens: its name, address and port; nowhere if it has just ended."""
    try:
        return {
            (process.name(), connection.laddr.ip, connection.laddr.port)
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        }
    except psutil.NoSuchProcess:
        return set()


def test_everything_listens_on_loopback_only(fleet: Fleet) -> None:
    processes = [psutil.Process(), *(process for process, _ in marked_processes())]
    listening = set().union(*map(listening_at, processes))
    print("what listens where:", *sorted(listening), sep="\n  ")
    assert len(listening) >= 4
    assert {ip for _, ip, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_a_driver_without_the_token_is_refused(fleet: Fleet, token: str | None) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    environment = {name: value for name, value in os.environ.items() if "RAY_" not in name}
    # Without the second, Ray would not even look at loopback; with the first it gives up sooner.
    environment |= {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if token is not None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    code = f"import ray; ray.init(address={address!r}); print('connected')"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode != 0 and "connected" not in answer.stdout
    assert "InvalidAuthToken" in answer.stderr


def test_workers_find_us_without_an_installation(fleet: Fleet) -> None:
    """A pack in custom_nodes is importable in the master alone: workers are told the place."""
    path = psutil.Process(fleet.workers[0].pid).environ()["PYTHONPATH"]
    assert str(Path(comfyfleet.__file__).parent.parent) in path.split(os.pathsep)
    assert os.environ.get("PYTHONPATH") != path


def test_usage_statistics_are_off_and_the_token_is_private(fleet: Fleet) -> None:
    worker = psutil.Process(fleet.workers[0].pid)
    environment = worker.environ()
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700


def _log(fleet: Fleet) -> str:
    time.sleep(0)
    return "".join(Path(worker.log_file).read_text() for worker in fleet.workers)
