"""Bytes between ranks: uneven, of any dtype, in a ring; and what happens when a rank is gone."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import timedelta

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._C._distributed_c10d import _dump_fr_trace_json
from torch.distributed import HashStore, Store

from comfyfleet.errors import LinkLost
from comfyfleet.parallel import comm
from comfyfleet.parallel.comm import Place, World
from tests.parallel.ranks import Ranks

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8,
    torch.int8, torch.int16, torch.int64, torch.bool, torch.complex64,
]  # fmt: skip


def everyone(world: World) -> range:
    return range(world.place.size)


def numbered(source: int, to: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What one rank sends to another: numbers that tell both."""
    return ((torch.arange(count) + 16 * to + 64 * source) % 251).to(dtype)


@st.composite
def tables(draw: st.DrawFn) -> list[list[int]]:
    """How many elements each rank sends to each."""
    num_ranks = draw(st.integers(1, 4))
    row = st.lists(st.integers(0, 9), min_size=num_ranks, max_size=num_ranks)
    return draw(st.lists(row, min_size=num_ranks, max_size=num_ranks))


def trade(world: World, table: list[list[int]], dtype: torch.dtype) -> list[Tensor]:
    here, ranks = world.place.rank, everyone(world)
    parts = [numbered(here, to, table[here][to], dtype) for to in ranks]
    into = [table[source][here] for source in ranks]
    return list(world.group(ranks).all_to_all(torch.cat(parts), table[here], into).split(into))


def test_torch_keeps_no_record_of_operations(ranks: Ranks):
    """Two threads that begin to use two groups at once would crash the process in it."""
    ranks.run(2, lambda world: trade(world, [[1, 1], [1, 1]], torch.float32))
    assert "entries" not in json.loads(_dump_fr_trace_json(True, False))


@given(table=tables())
@settings(max_examples=50)
def test_all_to_all_of_any_sizes(ranks: Ranks, table: list[list[int]]):
    found = ranks.run(len(table), lambda world: trade(world, table, torch.float32))
    for here, parts in enumerate(found):
        for source, part in enumerate(parts):
            assert torch.equal(part, numbered(source, here, table[source][here]))


@pytest.mark.parametrize("table", [[[0, 0], [0, 0]], [[0, 3], [0, 0]], [[2, 0], [0, 5]]])
def test_nothing_travels_where_there_is_nothing(ranks: Ranks, table: list[list[int]]):
    found = ranks.run(2, lambda world: trade(world, table, torch.bfloat16))
    assert [[len(part) for part in parts] for parts in found] == [
        [table[0][here], table[1][here]] for here in range(2)
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_travels(ranks: Ranks, dtype: torch.dtype):
    found = ranks.run(2, lambda world: trade(world, [[1, 3], [2, 1]], dtype))
    for here, parts in enumerate(found):
        for source, part in enumerate(parts):
            wanted = numbered(source, here, [[1, 3], [2, 1]][source][here], dtype)
            assert part.dtype == dtype
            assert torch.equal(part.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("sizes", [(3,), (2, 0), (1, 4, 2), (0, 0, 0, 0)])
def test_all_gather_of_uneven_shards(ranks: Ranks, sizes: tuple[int, ...]):
    def work(world: World) -> list[Tensor]:
        shard = numbered(world.place.rank, 0, sizes[world.place.rank])
        return world.group(everyone(world)).all_gather(shard, sizes)

    for shards in ranks.run(len(sizes), work):
        for source, shard in enumerate(shards):
            assert torch.equal(shard, numbered(source, 0, sizes[source]))


def test_what_is_not_contiguous_travels_too(ranks: Ranks):
    def work(world: World) -> Tensor:
        every_second = torch.arange(8)[::2]
        return world.group((0, 1)).all_to_all(every_second, [2, 2], [2, 2])

    assert [found.tolist() for found in ranks.run(2, work)] == [[0, 2, 0, 2], [4, 6, 4, 6]]


def pass_round(world: World, rounds: int) -> list[int]:
    """Whose numbers come round a ring; rank i has i + 1 of them, the last none."""
    ring, here = world.group(everyone(world)), world.place.rank
    sizes = [0 if rank == len(ring) - 1 else rank + 1 for rank in range(len(ring))]
    data, owner, found = numbered(here, 0, sizes[here]), here, []
    for _ in range(rounds):
        owner = (owner - 1) % len(ring)
        to, source = (here + 1) % len(ring), (here - 1) % len(ring)
        data = ring.start_exchange(data, to, sizes[owner], source)()
        assert torch.equal(data, numbered(owner, 0, sizes[owner]))
        found.append(owner)
    return found


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_a_ring_passes_blocks_on(ranks: Ranks, num_ranks: int):
    found = ranks.run(num_ranks, lambda world: pass_round(world, 2 * num_ranks))
    for here, owners in enumerate(found):
        assert owners == [(here - 1 - step) % num_ranks for step in range(2 * num_ranks)]


def test_exchanges_meet_whatever_else_their_ranks_did(ranks: Ranks):
    """A leader talks with each follower, these with the leader only; then all form a ring."""

    def work(world: World) -> list[int]:
        here = world.place.rank
        for other in range(1, world.place.size):
            if here == 0:
                world.line((0, other)).send(torch.zeros(1), 1)
            elif here == other:
                world.line((0, other)).receive(1, torch.float32, 0)
        return pass_round(world, 2)

    assert ranks.run(3, work) == [[2, 1], [0, 2], [1, 0]]


def test_several_exchanges_may_be_on_their_way(ranks: Ranks):
    def work(world: World) -> list[list[float]]:
        group, other = world.group((0, 1)), 1 - world.place.rank
        coming = [
            group.start_exchange(numbered(world.place.rank, i, 2), other, 2, other)
            for i in range(3)
        ]
        return [finish().tolist() for finish in reversed(coming)]

    found = ranks.run(2, work)
    for here, received in enumerate(found):
        assert received == [numbered(1 - here, i, 2).tolist() for i in (2, 1, 0)]


def test_groups_know_their_ranks(ranks: Ranks):
    def work(world: World) -> tuple[int, tuple[int, ...], int]:
        mine = (0, 2) if world.place.rank in (0, 2) else (1,)
        group = world.group(mine)
        assert group is world.group(mine) and group is not world.line(mine)
        return len(group), group.ranks, group.index

    assert ranks.run(3, work) == [(2, (0, 2), 0), (1, (1,), 0), (2, (0, 2), 1)]


def wait_for_all(world: World) -> None:
    world.group(everyone(world)).all_to_all(torch.zeros(2), [1, 1], [1, 1])


def wait_for_a_message(world: World) -> None:
    world.line((0, 1)).receive(1, torch.float32, 0)


def wait_in_a_ring(world: World) -> None:
    world.group((0, 1)).start_exchange(torch.zeros(1), 0, 1, 0)()


WAITS = {"all_to_all": wait_for_all, "receive": wait_for_a_message, "finish": wait_in_a_ring}


def connected(*groups: tuple[int, ...]) -> list[World]:
    """A world whose groups are connected, and whose end harms no other test."""
    store, device = HashStore(), torch.device("cpu")
    size = 1 + max(rank for group in groups for rank in group)
    places = [Place(rank=rank, size=size, device=device, timeout_s=600) for rank in range(size)]
    worlds = [World(store, place) for place in places]
    with ThreadPoolExecutor(size) as pool:
        for group in groups:
            list(pool.map(lambda rank, group=group: worlds[rank].group(group), group))
    return worlds


@pytest.fixture
def worlds() -> list[World]:
    """Two ranks."""
    found = connected((0, 1))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda world: world.line((0, 1)), found))
    return found


@pytest.mark.parametrize("name", WAITS)
def test_a_world_that_closes_is_noticed_at_once(worlds: list[World], name: str):
    """The operations' own time limits are much longer than the one of this test."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(WAITS[name], worlds[1])
        state = waiting_state(worlds[1], name)
        worlds[0].close()
        with pytest.raises(LinkLost, match="rank 1 lost the others"):
            waiting.result(timeout=60)
    assert state.startswith("rank 1 has done 3 operations; it is in:\n")
    assert WAITS[name].__name__ in state and "(idle)" not in state


def test_it_is_noticed_though_the_other_still_holds_an_exchange(worlds: list[World]):
    """As the traceback of a rank does that failed while a block was on its way."""
    finish = worlds[0].group((0, 1)).start_exchange(torch.zeros(1), 1, 1, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_all, worlds[1])
        waiting_state(worlds[1], "all_to_all")
        worlds[0].close()
        with pytest.raises(LinkLost, match="rank 1 lost the others"):
            waiting.result(timeout=60)
    with pytest.raises(LinkLost, match="rank 0 has left its gang"):
        finish()


def test_it_is_noticed_though_the_other_still_holds_a_lost_exchange():
    """Rank 2 waits for rank 1, which waited for rank 0."""
    worlds = connected((0, 1, 2))
    finish = worlds[1].group((0, 1, 2)).start_exchange(torch.zeros(1), 0, 1, 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worlds[2].group((0, 1, 2)).receive, 1, torch.float32, 1)
        worlds[0].close()
        with pytest.raises(LinkLost, match="rank 1 lost the others") as held:
            finish()
        worlds[1].close()
        with pytest.raises(LinkLost, match="rank 2 lost the others"):
            waiting.result(timeout=60)
    assert held.tb is not None


def waiting_state(world: World, name: str) -> str:
    """Its state, as soon as it is in that operation."""
    while f"in {name}\n" not in (state := world.state()):
        pass
    return state


def test_an_idle_rank_says_so(worlds: list[World]):
    assert worlds[0].state().endswith("it is in:\n  (idle)\n")


def test_who_closed_its_world_can_do_nothing_more(worlds: list[World]):
    group = worlds[0].group((0, 1))
    worlds[0].close()
    for act in (
        lambda: group.send(torch.zeros(1), 1),
        lambda: group.start_exchange(torch.zeros(1), 1, 1, 1),
        lambda: worlds[0].group((0, 1)),
        lambda: worlds[0].line((0, 1)),
    ):
        with pytest.raises(LinkLost, match=r"rank 0 has left its gang\."):
            act()
    worlds[0].close()


def test_a_rank_that_does_not_come_is_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comm, "_MEET_S", 0.05)
    world = World(HashStore(), Place(rank=0, size=2, device=torch.device("cpu")))
    for group in (world.group, world.line):
        with pytest.raises(LinkLost, match="rank 0 lost the others"):
            group((0, 1))


@pytest.mark.parametrize("told", [True, False])
def test_a_rank_that_leaves_before_it_comes_is_lost_at_once(told: bool):
    """It says so, or somebody saw it die: nobody waits for as long as connecting may take."""
    store, died = HashStore(), threading.Event()
    places = [Place(rank=rank, size=2, device=torch.device("cpu")) for rank in (0, 1)]
    staying, leaving = World(store, places[0], died.is_set), World(store, places[1])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(staying.group, (0, 1))
        waiting_state(staying, "_connect")
        leaving.close() if told else died.set()
        with pytest.raises(LinkLost, match="rank 0 lost the others: one of them has left"):
            waiting.result(timeout=60)


def test_nobody_goes_before_all_are_connected(monkeypatch: pytest.MonkeyPatch):
    """Who is refused in a forward's first layer leaves at once; others would wait for it."""
    events: list[str] = []
    first_made, first_done = threading.Event(), threading.Event()

    def make(store: Store, rank: int, size: int, timeout: timedelta, place: Place) -> None:
        if rank == 0:
            first_made.set()
        else:
            first_made.wait(60)
            first_done.wait(0.2)  # it would be set at once
            events.append("the second is connected")

    def come(world: World) -> None:
        world.group((0, 1))
        if world.place.rank == 0:
            events.append("the first can go")
            first_done.set()

    monkeypatch.setitem(comm._PROCESS_GROUPS, "gloo", make)
    store = HashStore()
    places = [Place(rank=rank, size=2, device=torch.device("cpu")) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(come, [World(store, place) for place in places]))
    assert events == ["the second is connected", "the first can go"]


def test_who_leaves_when_all_are_connected_has_come(monkeypatch: pytest.MonkeyPatch):
    """The other may look for it, and then for who has left, in just that moment."""
    looks, has_left = threading.Event(), threading.Event()
    made: list[int] = []

    def make(store: Store, rank: int, size: int, timeout: timedelta, place: Place) -> None:
        made.append(rank)
        assert rank == 0 or looks.wait(60)

    def between_its_looks() -> bool:
        if 0 in made:
            looks.set()
            assert has_left.wait(60)
        return False

    def come_and_leave(world: World) -> None:
        world.group((0, 1))
        world.close()
        has_left.set()

    monkeypatch.setitem(comm._PROCESS_GROUPS, "gloo", make)
    store = HashStore()
    places = [Place(rank=rank, size=2, device=torch.device("cpu")) for rank in (0, 1)]
    staying, leaving = World(store, places[0], between_its_looks), World(store, places[1])
    with ThreadPoolExecutor(1) as pool:
        left = pool.submit(come_and_leave, leaving)
        assert len(staying.group((0, 1))) == 2
        left.result(timeout=60)


def test_who_comes_after_one_has_given_up_waits_for_nobody():
    """What that one has said before is still there: gloo would wait for it."""
    store = HashStore()
    places = [Place(rank=rank, size=3, device=torch.device("cpu")) for rank in range(3)]
    worlds = [World(store, place) for place in places]
    worlds[1].close()
    for rank in (0, 2):
        with pytest.raises(LinkLost, match=f"rank {rank} lost the others: one of them has left"):
            worlds[rank].line((0, 2))


def connected_in_time(*groups: tuple[int, ...]) -> list[World]:
    """Where little time is left to connect: again, as the machine may stand still for as long."""
    for _ in range(9):
        with suppress(LinkLost):
            return connected(*groups)
    return connected(*groups)


def test_messages_may_take_longer_than_connecting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comm, "_MEET_S", 5.0)
    worlds = connected_in_time((0, 1))
    with ThreadPoolExecutor(2) as pool:
        waiting = [
            pool.submit(worlds[1].group((0, 1)).receive, 1, torch.float32, 0),
            pool.submit(worlds[1].group((0, 1)).start_exchange(torch.zeros(0), 0, 1, 0)),
        ]
        assert not wait(waiting, timeout=5.5).done
        worlds[0].group((0, 1)).start_exchange(torch.ones(1), 1, 0, 1)()
        worlds[0].group((0, 1)).send(torch.ones(1), 1)
        assert [found.result(timeout=60).item() for found in waiting] == [1.0, 1.0]


def test_a_rank_that_is_late_is_lost():
    worlds = connected((0, 1))
    worlds[1].group((0, 1))._pg._set_default_timeout(timedelta(seconds=0.05))
    with pytest.raises(LinkLost, match="rank 1 lost the others"):
        wait_for_all(worlds[1])
