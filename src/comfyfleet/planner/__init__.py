"""What the hardware is, and what is worth doing with it."""

from comfyfleet.planner.devices import (
    Device,
    choose_devices,
    cpu_device,
    device_environment,
    find_devices,
)

__all__ = ["Device", "choose_devices", "cpu_device", "device_environment", "find_devices"]
