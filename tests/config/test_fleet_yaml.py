"""fleet.yaml as a file: workers on the network, and every way in which it can be wrong."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comfyfleet.config import SHARE, Config, load
from comfyfleet.errors import InputError

WORKER = "workers:\n- name: a\n  url: http://x\n"


def saved(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_no_file_says_nothing(tmp_path: Path) -> None:
    found = load(tmp_path / "fleet.yaml", {})
    assert found.workers == [] and found.value(SHARE) is False


@pytest.mark.parametrize("text", ["", "# only this\n", "---\n", "workers:\nsettings:\n", "{}"])
def test_an_empty_file_says_nothing(text: str, tmp_path: Path) -> None:
    assert load(saved(tmp_path, text), {}).document == Config().document


def test_workers_are_read(tmp_path: Path) -> None:
    text = """\
workers:
  - name: studio
    url: https://10.0.0.5:8188/
    token_env: STUDIO
    ca: studio.pem
  - {name: attic, url: "http://[fe80::1]:8188/comfy", enabled: false, token_file: attic.token}
"""
    studio, attic = load(saved(tmp_path, text), {}).workers
    assert (studio.name, studio.url, studio.enabled) == ("studio", "https://10.0.0.5:8188", True)
    assert (studio.token_env, studio.token_file, studio.ca) == ("STUDIO", None, "studio.pem")
    assert (attic.url, attic.enabled) == ("http://[fe80::1]:8188/comfy", False)


#: The text, the line and a part of what is said of it.
WRONG = {
    "no YAML": ("workers: [\n", 2, "is no YAML: "),
    "a tab": ("settings:\n\tshare: true\n", 2, "is no YAML: "),
    "two documents": ("--- {}\n--- {}\n", 2, "is no YAML: "),
    "not UTF-8": (b"settings: {}\n# \xff\n", 2, "is not UTF-8"),
    "a list": ("- name: a\n", 1, "write KEY: VALUE, with the keys workers, launchers, settings"),
    "a key twice": ("settings:\n  share: true\n  share: false\n", 3, "'share' stands twice"),
    "an unknown key": ("sharing: true\n", 1, "sharing is no key that there is; choose one of"),
    "a misspelt key": ("setings: {}\n", 1, "the nearest is 'settings'"),
    "a misspelt setting": ("settings:\n  sahre: true\n", 2, "the nearest is 'share'"),
    "a misspelt key of a worker": (WORKER + "  tokenfile: x\n", 4, "secrets do not belong"),
    "a number as key": ("1: 2\n", 1, "is no key that there is"),
    "workers as text": ("workers: studio\n", 1, "workers is 'studio'; give a list of workers"),
    "settings as list": ("settings: [share]\n", 1, "settings is a list; give settings, each as"),
    "a worker as text": ("workers:\n- studio\n", 2, "give a mapping with the keys name, url, "),
    "no url": ("workers:\n- name: a\n", 2, "workers[0].url is missing; give an address such as"),
    "no name": ("workers:\n- url: http://x\n", 2, "workers[0].name is missing; give 1 to 64"),
    "a name twice": (WORKER + "- name: a\n  url: http://y\n", 1, "the name 'a' stands twice"),
    "a name of ours": ("workers:\n- name: CPU-0\n  url: http://x\n", 2, "'CPU-0' is kept for"),
    "a word as name": ("workers:\n- name: all\n  url: http://x\n", 2, "'all' is kept for"),
    "HTML as name": ("workers:\n- name: <b>\n  url: http://x\n", 2, "is '<b>'; give 1 to 64"),
    "a number as name": ("workers:\n- name: 7\n  url: http://x\n", 2, "name is 7; give 1 to 64"),
    "enabled as text": (WORKER + "  enabled: on\n", 4, "enabled is 'on'; give true or false"),
    "two tokens": (WORKER + "  token_env: X\n  token_file: y\n", 2, "has token_env and token_fil"),
    "a ca without TLS": (WORKER + "  ca: x.pem\n", 2, "has ca, but its url is not https"),
    "a Python object": ("settings: !!python/object/apply:os.abort []\n", 1, "settings is a list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_its_line(case: str, tmp_path: Path) -> None:
    text, line, said = WRONG[case]
    path = saved(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load(path, {})
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert said in str(caught.value)


def test_all_that_is_wrong_is_said_in_the_order_of_lines(tmp_path: Path) -> None:
    text = "settings:\n  share: maybe\nworkers:\n  - url: x\n    name: a\n"
    with pytest.raises(InputError) as caught:
        load(saved(tmp_path, text), {})
    lines = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    assert [line.rpartition(" ")[2] for line in lines] == ["2", "4"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("10.0.0.5:8188", "begins with http:// or https://"),
        ("ftp://x", "begins with http:// or https://"),
        ("file:///etc/passwd", "begins with http:// or https://"),
        ("http://", "begins with http:// or https://"),
        ("http://x:0", "begins with http:// or https://"),
        ("http://x:99999", "is no address"),
        ("http://[::1", "is no address"),
        ("http://x y", "begins with http:// or https://"),
        ("http://x/../y", "begins with http:// or https://"),
        ("http://x/<b>", "begins with http:// or https://"),
        ("http://x/#top", "holds a ? or #"),
        ("http://x/#", "holds a ? or #"),
        ("http://x/?token=hunter2", "holds a ? or #"),
        ("http://user:hunter2@x", "holds a user name or password"),
        ("http://hunter2@x", "holds a user name or password"),
    ],
)
def test_a_wrong_address_is_refused(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(saved(tmp_path, f"workers:\n- name: a\n  url: '{url}'\n"), {})
    assert ", line 3: workers[0].url " in str(caught.value) and said in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        WORKER + "  token: hunter2\n",
        WORKER + "  Token: [hunter2]\n",
        WORKER + "  password: hunter2\n",
        WORKER + "  token_env: hunter2-x\n",
        WORKER + "  token_file: [hunter2]\n",
        WORKER + "  token: hunter2\n  token: hunter2\n",
        "settings: {token: hunter2}\n",
        "token: hunter2\n",
        "api_key: hunter2\n",
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(saved(tmp_path, text), {})
    assert "hunter2" not in str(caught.value)


def test_a_folder_or_a_large_file_is_no_fleet_yaml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path, {})
    with pytest.raises(InputError, match="larger than 1 MiB"):
        load(saved(tmp_path, "#" * ((1 << 20) + 1)), {})


def test_aliases_that_grow_cost_nothing(tmp_path: Path) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    lines = ["a: &a [x, x]"]
    lines += [f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]" for a, b in pairwise(names)]
    with pytest.raises(InputError):
        load(saved(tmp_path, "\n".join([*lines, "workers: *z", "settings: &me [*me]"])), {})


_WORDS = st.sampled_from(
    [
        *("workers:", "settings:", "- name: a", "  url: http://x", "  share: true", "  share:"),
        *("- {", "}", "[", "]", "&a", "*a", "!!set", "? ", "|", "<<: *a", "\t", "---", "%YAML 1.1"),
        *(
            "1: 2",
            "2020-01-01",
            "0x1_",
            "0o9",
            "1e999",
            "  token: hunter2",
            "\x00",
            "\ufeff",
            '"\\',
        ),
        *("!!timestamp 9", "!!int x", "!!float y", "!!omap", "!!binary x", "12:30:45", "~", "null"),
    ]
)
_TEXTS = st.one_of(st.text(), st.lists(_WORDS, max_size=8).map("\n".join))


@example(text="[" * 5000)
@example(text="a: " * 3000)
@example(text="!!omap\n- :")
@given(text=_TEXTS)
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_text_is_a_config_or_an_input_error(text: str, tmp_path: Path) -> None:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    try:
        load(saved(tmp_path, data), {}).shown()
    except InputError as error:
        assert "hunter2" not in str(error)
