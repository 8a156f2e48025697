"""The documentation names everything that there is, and nothing it leads to is missing."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from comfyfleet.cli.app import app
from comfyfleet.config import SETTINGS
from scripts.docs import CONFIGURATION_PAGE, TABLES, with_tables
from scripts.openapi import OPENAPI, as_text

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest itself needs tomli
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
NODE_FILES = ROOT / "src" / "comfyfleet" / "extension" / "nodes"
PAGES = [
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
COMMANDS = typer.main.get_command(app).commands


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def headings(path: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", read(path), re.MULTILINE)


def schemas() -> Iterator[tuple[str, str, bool]]:
    """File, node id and whether it is internal, of each schema that names its id."""
    for file in sorted(NODE_FILES.glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                given = {keyword.arg: keyword.value for keyword in call.keywords}
                if isinstance(node_id := given.get("node_id"), ast.Constant):
                    category = given.get("category")
                    internal = isinstance(category, ast.Name) and category.id == "INTERNAL"
                    yield file.stem, node_id.value, internal


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


PUBLIC = [node_id for file, node_id, internal in schemas() if file != "legacy" and not internal]


def test_nodes_are_found() -> None:
    assert {"FleetCollector", "FleetSeed"} <= set(PUBLIC)
    assert "FleetReturn" not in PUBLIC


@pytest.mark.parametrize("node_id", PUBLIC)
def test_each_node_has_help_and_a_heading(node_id: str) -> None:
    assert (ROOT / "web" / "docs" / f"{node_id}.md").is_file()
    assert [text for text in headings("docs/nodes.md") if f"`{node_id}`" in text]


def test_help_is_of_public_nodes_only() -> None:
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == set(PUBLIC)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_nothing_that_the_page_warns_of(path: Path) -> None:
    """A link may be null if it is not there; of anything else that is null it shows an alert."""
    empty = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        empty.extend(key for key, value in pairs if value is None)
        return dict(pairs)

    json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=look)
    assert set(empty) <= {"link", "links"}


def test_tiled_nodes_are_in_an_example() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in EXAMPLES)
    tiled = [name for name in PUBLIC if "Upscale" in name or "VAE" in name]
    assert len(tiled) == 6
    assert [name for name in tiled if f'"type": "{name}"' not in text] == []


def test_the_old_ids_are_listed() -> None:
    legacy = (NODE_FILES / "legacy.py").read_text(encoding="utf-8")
    old = re.findall(r"^class (\w+)\(", legacy, re.MULTILINE)
    assert "DistributedCollector" in old
    assert [name for name in old if f"| `{name}` |" not in read("docs/nodes.md")] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_section_with_all_its_options(name: str) -> None:
    _, heading, rest = read("docs/command.md").partition(f"\n## comfyfleet {name}\n")
    assert heading, f"docs/command.md needs the heading: ## comfyfleet {name}"
    section = rest.partition("\n## ")[0]
    commands = (COMMANDS[name], *getattr(COMMANDS[name], "commands", {}).values())
    options = [option for one in commands for each in one.params for option in each.opts]
    assert [each for each in options if each.startswith("--") and f"`{each}" not in section] == []


def test_the_tables_of_the_configuration_are_up_to_date() -> None:
    page = CONFIGURATION_PAGE.read_text(encoding="utf-8")
    assert [name for name, table in TABLES.items() if table() not in page] == []
    assert with_tables(page) == page, "run: python scripts/docs.py"


def test_the_flags_of_the_settings_are_options_of_the_command() -> None:
    options = {
        option for each in COMMANDS.values() for param in each.params for option in param.opts
    }
    assert {setting.flag for setting in SETTINGS if setting.flag} <= options


def test_the_description_of_our_routes_is_up_to_date() -> None:
    assert OPENAPI.read_text(encoding="utf-8") == as_text(), "run: python scripts/openapi.py"


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        with_tables("# Configuration\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_each_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    missing = [link for link in local if not (page.parent / link.partition("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_each_anchor_is_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([\w./-]*\.md)?#([\w-]+)\)", page.read_text("utf-8")):
        path = (page.parent / target if target else page).relative_to(ROOT)
        anchors = [_anchor(text) for text in headings(str(path))]
        assert anchor in anchors, f"{path} has no heading #{anchor}"


def _anchor(heading: str) -> str:
    """The anchor that Git hosts make of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_requirements_are_those_of_the_package() -> None:
    assert read("requirements.txt").split("\n") == [*project()["dependencies"], ""]


def test_the_newest_changes_are_of_this_version() -> None:
    newest = re.search(r"^## \[?([^\]\s]+)", read("CHANGELOG.md"), re.MULTILINE)
    assert newest and newest[1] in ("Unreleased", project()["version"])
