"""What fleet.yaml may hold, and how what it may not hold is said: with its line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from comfyfleet.config.settings import BY_KEY
from comfyfleet.errors import InputError

#: Names that local workers have (cuda1, cpu-0), and words that stand for others.
TAKEN = re.compile(r"(cuda|xpu|mps|cpu)[0-9]*(-[0-9]+)?|all|master", re.IGNORECASE)
_SECRET = re.compile(r"token|secret|password|api_?key", re.IGNORECASE)

#: A place in the file: keys and, for lists, indices.
Place = tuple[str | int, ...]


def _wrong(sentence: str) -> PydanticCustomError:
    # Without what was given: it may be a secret.
    return PydanticCustomError("comfyfleet", "{sentence}", {"sentence": sentence})


def _is_free(name: str) -> str:
    if TAKEN.fullmatch(name):
        raise _wrong(f"{name!r} is kept for workers of this machine and for commands; give another")
    return name


def base_url(text: str) -> str:
    """An address of a ComfyUI, without a slash at its end. Raises ValueError."""
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise _wrong("is no address; give one such as https://10.0.0.5:8188") from None
    if "@" in parts.netloc:
        raise _wrong("holds a user name or password; give the address alone, and a token_file")
    if parts.query or parts.fragment or "#" in text or "?" in text:
        raise _wrong("holds a ? or #; give the address of the ComfyUI alone")
    if parts.scheme not in ("http", "https") or not host or port == 0 or _is_odd(text):
        raise _wrong("is no address; give one that begins with http:// or https://")
    return text.rstrip("/")


def _is_odd(text: str) -> bool:
    return re.search(r"[^!-~]|[\\<>\"'`{}|^]|/\.\.?(/|$)", text) is not None


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"), AfterValidator(_is_free)]
Variable = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
FileName = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f]+$")]


def _field(default: Any, allowed: str, help_: str) -> Any:
    return Field(default, description=help_, json_schema_extra={"allowed": allowed})


class _Room(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WorkerEntry(_Room):
    """A worker on the network, as fleet.yaml describes it."""

    name: Name = _field(
        ...,
        "1 to 64 letters, digits, dots, - and _, the first a letter or digit",
        "What it is called: letters, digits, dots, - and _. Each worker has its own name.",
    )
    url: Annotated[str, AfterValidator(base_url)] = _field(
        ...,
        "an address such as https://10.0.0.5:8188",
        "Where its ComfyUI answers: http:// or https://, without user name and password.",
    )
    enabled: bool = _field(True, "true or false", "false: it is left alone.")
    token_env: Variable | None = _field(
        None,
        "the name of an environment variable",
        "The environment variable that holds its token.",
    )
    token_file: FileName | None = _field(
        None,
        "the name of a file",
        "The file that holds its token and nothing else, beside fleet.yaml if it is no whole path. "
        "Nobody but its owner may be able to read it (`chmod 600`).",
    )
    ca: FileName | None = _field(
        None,
        "the name of a file",
        "The certificates (PEM) that its own must be signed by, for an https address that no "
        "public authority has certified. Beside fleet.yaml if it is no whole path.",
    )

    @model_validator(mode="after")
    def _one_token(self) -> WorkerEntry:
        if self.token_env is not None and self.token_file is not None:
            raise _wrong("has token_env and token_file; give one of them")
        if self.ca is not None and not self.url.lower().startswith("https:"):
            raise _wrong("has ca, but its url is not https; give an https address, or no ca")
        return self


#: What stands in braces in a launcher's words, but for JSON and a provider's own {{ }}.
PLACEHOLDER = re.compile(r"(?<!\{)\{([\w.\[\]/-]+)\}(?!\})")
#: Of each command: which ones it must have, and which ones it may have.
_PLACEHOLDERS: dict[str, tuple[set[str], set[str]]] = {
    "start": ({"name"}, {"name"}),
    "stop": ({"id"}, {"id", "name"}),
    "list": (set(), set()),
}
_SECRET_FLAG = re.compile(r"--?[a-z-]*(token|secret|password|api-?_?key)(=.*)?", re.IGNORECASE)

Word = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00-\x1f]+$")]
Words = Annotated[list[Word], Field(min_length=1, max_length=100)]


def _command(allowed: str, help_: str) -> Any:
    return _field(..., f"a list of words, the program first{allowed}", help_)


class LauncherEntry(_Room):
    """How machines of a cloud are started and stopped by its provider's command."""

    name: Annotated[Name, Field(max_length=40)] = _field(
        ...,
        "1 to 40 letters, digits, dots, - and _, the first a letter or digit",
        "What it is called. Its machines, and the workers on them, are called this, - and eight "
        "digits of 0-9 and a-f.",
    )
    start: Words = _command(
        " and {name} in one of them",
        "The command that starts a machine, as a list of words; no shell reads it. {name} is what "
        "the machine must be called.",
    )
    stop: Words = _command(
        " and {id} in one of them",
        "The command that ends a machine for good, so that it costs nothing. {id} is its id, "
        "{name} its name.",
    )
    list: Words = _command("", "The command that prints the machines there are, as JSON.")
    items: str = _field(
        "",
        "keys with dots between them",
        "Where in that JSON the list of machines stands. Empty: the JSON is the list.",
    )
    id_key: str = _field("id", "keys with dots between them", "Where a machine's id stands.")
    name_key: str = _field("name", "keys with dots between them", "Where its name stands.")
    url: Word = _field(
        ...,
        "an address with {id}, {name} or {KEY} in it",
        "Where its ComfyUI answers: an address with {id}, {name}, or any {KEY} of the machine in "
        "that JSON, with dots between keys.",
    )
    token_env: Variable | None = _field(
        None,
        "the name of an environment variable",
        "As for a worker; this or token_file is needed.",
    )
    token_file: FileName | None = _field(
        None, "the name of a file", "As for a worker; this or token_env is needed."
    )
    ca: FileName | None = _field(None, "the name of a file", "As for a worker.")
    max: Annotated[int, Field(ge=1, le=100)] = _field(
        1, "a number from 1 to 100", "How many machines it may have at once."
    )
    start_timeout: Annotated[int, Field(ge=1, le=86400)] = _field(
        600,
        "a number of seconds from 1 to 86400",
        "Seconds from its start until its ComfyUI must answer; else it is ended again.",
    )

    @field_validator("start", "stop", "list")
    @classmethod
    def _words(cls, words: Words, info: ValidationInfo) -> Words:
        needed, allowed = _PLACEHOLDERS[str(info.field_name)]
        found = {name for word in words for name in PLACEHOLDER.findall(word)}
        if needed - found:
            raise _wrong(f"lacks {{{min(needed)}}}; put it where the command expects that")
        if found - allowed:
            known = ", ".join(f"{{{name}}}" for name in sorted(allowed)) or "none"
            raise _wrong(
                f"has {{{min(found - allowed)}}}, which stands for nothing; known: {known}"
            )
        if any(_SECRET_FLAG.fullmatch(word) for word in words):
            raise _wrong(
                "holds a secret, which does not belong into this file. Log in with the provider's "
                "own command, or set the variable of the environment that it reads"
            )
        return words

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        if not PLACEHOLDER.match(url):
            base_url(PLACEHOLDER.sub("1", url))
        return url

    @model_validator(mode="after")
    def _needs_a_token(self) -> LauncherEntry:
        if (self.token_env is None) == (self.token_file is None):
            raise _wrong(
                "needs a token, as its machines can be reached by everybody; give token_env or "
                "token_file, one of them"
            )
        return self


def _settings_room() -> type[_Room]:
    fields: dict[str, Any] = {
        key: (setting.kind.type | None, _field(None, setting.kind.allowed, setting.help))
        for key, setting in BY_KEY.items()
    }
    return create_model("Settings", __base__=_Room, **fields)


_Settings = _settings_room()


def _nothing(value: Any, empty: Any) -> Any:
    return empty if value is None else value


class Document(_Room):
    """The whole file. A key without a value counts as not there."""

    workers: Annotated[list[WorkerEntry], BeforeValidator(lambda value: _nothing(value, []))] = (
        _field([], "a list of workers, each with name and url", "Workers on the network.")
    )
    launchers: Annotated[
        list[LauncherEntry], BeforeValidator(lambda value: _nothing(value, []))
    ] = _field([], "a list of launchers", "How machines of a cloud are started and stopped.")
    settings: Annotated[
        _Settings,  # type: ignore[valid-type] # made from the table
        BeforeValidator(lambda value: _nothing(value, {})),
    ] = _field(_Settings(), "settings, each as KEY: VALUE", "The settings of the table above.")

    @field_validator("workers", "launchers")
    @classmethod
    def _names_differ(cls, entries: list[Any], info: ValidationInfo) -> list[Any]:
        names = [entry.name for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            kind = str(info.field_name).removesuffix("s")
            raise _wrong(f"the name {twice[0]!r} stands twice; give each {kind} its own")
        return entries


def worker_entry(given: Mapping[str, Any]) -> WorkerEntry:
    """A worker from its keys and values. Raises InputError that lists all that is wrong."""
    try:
        return WorkerEntry.model_validate(given)
    except ValidationError as error:
        found = problems_of(error, WorkerEntry)
    raise InputError("\n".join(f"{key_of(place) or 'the worker'} {text}." for place, text in found))


def key_of(place: Place) -> str:
    """A place as it is said: workers[0].url."""
    names = (step if isinstance(step, int) or step.isprintable() else repr(step) for step in place)
    parts = (f"[{name}]" if isinstance(name, int) else f".{name}" for name in names)
    return "".join(parts).lstrip(".")


def problems_of(
    error: ValidationError, model: type[BaseModel] = Document
) -> list[tuple[Place, str]]:
    """Where something is wrong, and what is, in a sentence."""
    return [(each["loc"], _sentence(each, model)) for each in error.errors(include_url=False)]


def _sentence(error: ErrorDetails, model: type[BaseModel]) -> str:
    place, kind = error["loc"], error["type"]
    if kind == "comfyfleet":
        return error["msg"]
    if kind == "extra_forbidden":
        return _unknown(str(place[-1]), _expected(place[:-1], model)[1])
    allowed, keys = _expected(place, model)
    if kind == "missing":
        return f"is missing; give {allowed}"
    if keys and isinstance(place[-1], int):
        allowed = f"a mapping with the keys {', '.join(keys)}"
    if place and (_SECRET.search(str(place[-1])) or place[0] == "launchers"):
        return f"is wrong; give {allowed}"
    return f"is {_shown(error['input'])}; give {allowed}"


def _expected(place: Place, root: type[BaseModel]) -> tuple[str, list[str]]:
    """What may stand at this place, in words, and the keys of the mapping there."""
    model: type[BaseModel] | None = root
    allowed = f"a mapping with the keys {', '.join(root.model_fields)}"
    for key in place:
        if model is not None and isinstance(key, str):
            field = model.model_fields[key]
            allowed, model = allowed_in(field), _model_in(field.annotation)
    return allowed, list(model.model_fields) if model else []


def allowed_in(field: FieldInfo) -> str:
    """What a key may be, in words."""
    extra = field.json_schema_extra
    return str(extra["allowed"]) if isinstance(extra, dict) else ""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for each in (annotation, *get_args(annotation)):
        if get_origin(each) is None and isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _unknown(key: str, keys: Sequence[str]) -> str:
    if _SECRET.search(key):
        return (
            "is not allowed: secrets do not belong into this file. Put the token into a file of "
            "its own and name that (token_file), or name an environment variable (token_env)"
        )
    near = difflib.get_close_matches(key, keys, n=1)
    hint = f"the nearest is {near[0]!r}" if near else f"choose one of {', '.join(keys)}"
    return f"is no key that there is; {hint}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "empty"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
