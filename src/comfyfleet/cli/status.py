"""``comfyfleet status``: the fleets that run on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict

import psutil
from rich.table import Table

from comfyfleet.cli.show import console
from comfyfleet.fleet.registry import read_records


def show_status(*, as_json: bool) -> None:
    """Print a row for each worker of each fleet."""
    records = read_records()
    if as_json:
        print_json([asdict(record) for record in records])
        return
    if not records:
        console.print("no fleet is running on this machine")
        return
    table = Table("fleet of process", "worker", "device", "process", "memory")
    table.add_column("log", overflow="fold")
    notes: list[str] = []
    for record in records:
        for worker in record.workers:
            memory = f"on {worker.host}" if worker.host else _memory(worker.pid)
            row = (worker.id, worker.device_name, str(worker.pid))
            table.add_row(str(record.owner_pid), *row, memory, worker.log_file)
            notes += [f"{worker.id}: {worker.note}"] if worker.note else []
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def print_json(data: object) -> None:
    """Print data as one line of JSON, never wrapped or coloured."""
    console.out(json.dumps(data), highlight=False)


def _memory(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).memory_info().rss / 1024**2:.0f} MB"
    except psutil.NoSuchProcess:
        return "ended"
