"""Where things are and what the owner set; importing it reads nothing."""

from comfyfleet.config.config import FILE_NAME, Config, load
from comfyfleet.config.editing import (
    add_worker,
    edit,
    remove_worker,
    set_setting,
    setting_of,
    unset_setting,
)
from comfyfleet.config.peer import Import, import_file
from comfyfleet.config.places import WORKER_MARK, demo_dir, find_comfyui, is_worker, pack_dir
from comfyfleet.config.remotes import Remote
from comfyfleet.config.schema import TAKEN, LauncherEntry, WorkerEntry, worker_entry
from comfyfleet.config.settings import (
    ACCEPT_MODELS,
    BRANCHES,
    CLUSTER,
    HOSTS,
    INSECURE_CLUSTER,
    JOURNAL,
    MASTER_COMPUTES,
    SETTINGS,
    SHARE,
    STAGGER,
    WORKERS,
    Setting,
    text_of,
)

__all__ = [
    "ACCEPT_MODELS",
    "BRANCHES",
    "CLUSTER",
    "FILE_NAME",
    "HOSTS",
    "INSECURE_CLUSTER",
    "JOURNAL",
    "MASTER_COMPUTES",
    "SETTINGS",
    "SHARE",
    "STAGGER",
    "TAKEN",
    "WORKERS",
    "WORKER_MARK",
    "Config",
    "Import",
    "LauncherEntry",
    "Remote",
    "Setting",
    "WorkerEntry",
    "add_worker",
    "demo_dir",
    "edit",
    "find_comfyui",
    "import_file",
    "is_worker",
    "load",
    "pack_dir",
    "remove_worker",
    "set_setting",
    "setting_of",
    "text_of",
    "unset_setting",
    "worker_entry",
]
