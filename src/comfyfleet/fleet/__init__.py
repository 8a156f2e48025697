"""The running fleet: Ray, its actors, and the dispatch that feeds them."""

from comfyfleet.fleet.fleet import Fleet, new_run_id
from comfyfleet.fleet.run import Delivery, Observer, Run, RunEvent
from comfyfleet.fleet.service import Service
from comfyfleet.fleet.spec import Host

__all__ = ["Delivery", "Fleet", "Host", "Observer", "Run", "RunEvent", "Service", "new_run_id"]
