"""The table of settings: key in fleet.yaml, environment variable, flag, default and help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from comfyfleet.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What a setting may be: its type for pydantic, and the same in words."""

    type: Any
    allowed: str

    @cached_property
    def _adapter(self) -> TypeAdapter[T]:
        return TypeAdapter(self.type)

    def parse(self, text: str) -> T:
        """The value that a text from the environment or a terminal means. Raises ValueError."""
        return self._adapter.validate_strings(text)

    def check(self, value: Any) -> T:
        """The value if a file may hold it: of its own type, and no text that looks like it.

        Raises ValueError.
        """
        return self._adapter.validate_python(value, strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(Generic[T]):
    """One setting, wherever it is given."""

    #: Below ``settings`` in fleet.yaml; empty if it cannot stand there.
    key: str
    env: str
    #: The command's option, where it has one.
    flag: str = ""
    kind: Kind[T]
    default: T
    help: str

    def parse(self, text: str, given_as: str) -> T:
        """What a text means; ``given_as`` is how its owner calls it. Raises InputError."""
        try:
            return self.kind.parse(text.strip())
        except ValidationError:
            raise InputError(f"{given_as} is {text!r}; give {self.kind.allowed}.") from None


def text_of(value: Any) -> str:
    """A value as its owner would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else f"{value}"


_DEVICE = re.compile(r"(cuda|xpu):[0-9]{1,3}|mps|cpu")


_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?")


def _as_text(value: Any) -> Any:
    """A number or a list of devices, as YAML has them, in the form that has them all."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return value


def _is_request(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    if text == "auto" or re.fullmatch("[0-9]{1,3}", text) or all(map(_DEVICE.fullmatch, names)):
        return text
    raise ValueError(text)


SWITCH: Kind[bool] = Kind(bool, "true or false")
SECONDS: Kind[float] = Kind(
    Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)], "seconds, 0 to 86400"
)
DEVICES: Kind[str] = Kind(
    Annotated[str, BeforeValidator(_as_text), AfterValidator(_is_request)],
    "auto, a number of workers, or a list of devices such as cuda:0,cuda:1 or cpu,cpu",
)
FOLDER: Kind[str] = Kind(str, "a folder")


def _is_names(text: str) -> str:
    if all(_HOST.fullmatch(name.strip()) for name in text.split(",")):
        return text
    raise ValueError(text)


HOST_NAMES: Kind[str] = Kind(
    Annotated[str, BeforeValidator(_as_text), AfterValidator(_is_names)],
    "host names without ports, such as studio.example or a.example,b.example",
)

HEAD: Kind[str] = Kind(
    Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(:[0-9]{4,5})?$")],
    "the address of a Ray head, such as 192.168.1.5:6379",
)

COMFYUI_PATH = Setting(
    key="",
    env="COMFYUI_PATH",
    flag="--comfyui",
    kind=FOLDER,
    default="",
    help="The ComfyUI to run: a folder with main.py. Default: the one that ComfyFleet is installed "
    "in, or the one that `make setup` put into .cache/.",
)
WORKERS = Setting(
    key="workers",
    env="COMFYFLEET_WORKERS",
    flag="--workers",
    kind=DEVICES,
    default="auto",
    help="Devices of this machine that get a worker: auto (every accelerator but the master's "
    "own), a number, or a list such as cuda:1,cuda:2 or cpu,cpu. 0 starts none.",
)
SHARE = Setting(
    key="share",
    env="COMFYFLEET_SHARE",
    kind=SWITCH,
    default=False,
    help="true: workers take prompts from ComfyUI's own queue from the start. false: not before it "
    "is switched on (`comfyfleet share on`).",
)
MASTER_COMPUTES = Setting(
    key="master",
    env="COMFYFLEET_MASTER",
    flag="--master",
    kind=SWITCH,
    default=True,
    help="true: the master computes too. false: it computes only what no worker may: no share of a "
    "collector, no tile, and with a shared queue no prompt that a worker can run.",
)
JOURNAL = Setting(
    key="journal",
    env="COMFYFLEET_JOURNAL",
    kind=SWITCH,
    default=True,
    help="With a shared queue: true: queued and running prompts are kept in ComfyUI's user folder "
    "and survive a restart. false: they are not written down.",
)
STAGGER = Setting(
    key="stagger",
    env="COMFYFLEET_STAGGER",
    flag="--stagger",
    kind=SECONDS,
    default=0.0,
    help="Seconds between two workers that begin to load a model, for models that need much main "
    "memory while they load. 0: all load at once.",
)
BRANCHES = Setting(
    key="branches",
    env="COMFYFLEET_BRANCHES",
    kind=SWITCH,
    default=False,
    help="true: independent branches of a prompt that sample run on several devices at the same "
    "time, as if each had a Fleet Branch.",
)
HOSTS = Setting(
    key="hosts",
    env="COMFYFLEET_HOSTS",
    kind=HOST_NAMES,
    default="",
    help="Further host names under which browsers open this ComfyUI, such as that of a proxy. "
    "Loopback, IP addresses and this machine's own name need not be named.",
)
CLUSTER = Setting(
    key="cluster",
    env="COMFYFLEET_CLUSTER",
    flag="--cluster",
    kind=HEAD,
    default="",
    help="HOST or HOST:PORT of the head of a Ray cluster, whose free devices work too. The "
    "variable RAY_ADDRESS does the same where this is not set.",
)
INSECURE_CLUSTER = Setting(
    key="insecure_cluster",
    env="COMFYFLEET_INSECURE_CLUSTER",
    flag="--insecure-cluster",
    kind=SWITCH,
    default=False,
    help="true: use a cluster that asks for no token, on which everybody who reaches it can run "
    "code. false: refuse it.",
)
ACCEPT_MODELS = Setting(
    key="accept_models",
    env="COMFYFLEET_ACCEPT_MODELS",
    kind=SWITCH,
    default=False,
    help="true: who holds a token may copy models into this ComfyUI's model folders (only formats "
    "without code: .safetensors, .sft, .gguf). false: nobody may.",
)
SETTINGS: tuple[Setting[Any], ...] = (
    COMFYUI_PATH,
    WORKERS,
    SHARE,
    MASTER_COMPUTES,
    JOURNAL,
    STAGGER,
    BRANCHES,
    HOSTS,
    CLUSTER,
    INSECURE_CLUSTER,
    ACCEPT_MODELS,
)
#: Those that fleet.yaml may hold, by their key.
BY_KEY = {setting.key: setting for setting in SETTINGS if setting.key}
