"""The running fleet: the only place that knows Ray."""

from comfyfleet.fleet.care import Care
from comfyfleet.fleet.conduct import new_run_id
from comfyfleet.fleet.fleet import Fleet
from comfyfleet.fleet.run import Delivery, Run, RunEvent
from comfyfleet.fleet.seat import MASTER, QUEUE
from comfyfleet.fleet.service import Service
from comfyfleet.fleet.spec import Host

__all__ = [
    "MASTER",
    "QUEUE",
    "Care",
    "Delivery",
    "Fleet",
    "Host",
    "Run",
    "RunEvent",
    "Service",
    "new_run_id",
]
