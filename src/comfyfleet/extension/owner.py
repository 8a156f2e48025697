"""What belongs to the owner of this ComfyUI: the folder of ComfyFleet's files, and the settings."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from comfyfleet.config import FILE_NAME, Config, is_worker, load


def owner_folder() -> Path:
    """Where ComfyFleet's own files lie in ComfyUI's user folder. It may not exist yet."""
    return Path(folder_paths.get_user_directory()).resolve() / "comfyfleet"


def read_config() -> Config:
    """What the owner has set, read anew. A worker has nothing of its own to be set.

    Raises InputError that names line and key of what is wrong in fleet.yaml.
    """
    return Config() if is_worker() else load(owner_folder() / FILE_NAME)
