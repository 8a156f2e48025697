"""Write the parts of the documentation that follow from the code: ``python scripts/docs.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel

from comfyfleet.config import SETTINGS, LauncherEntry, WorkerEntry, text_of

CONFIGURATION_PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"


def settings_table() -> str:
    """All settings as a Markdown table, in the order of ``config.SETTINGS``."""
    return _table(
        ("Key", "Variable", "Option", "Default", "What it does"),
        (
            (
                _code(setting.key),
                _code(setting.env),
                _code(setting.flag),
                _code(text_of(setting.default)),
                setting.help,
            )
            for setting in SETTINGS
        ),
    )


def workers_table() -> str:
    """The keys of a worker on the network as a Markdown table."""
    return _keys_table(WorkerEntry)


def launchers_table() -> str:
    """The keys of a launcher as a Markdown table."""
    return _keys_table(LauncherEntry)


def _keys_table(entry: type[BaseModel]) -> str:
    return _table(
        ("Key", "Default", "What it is"),
        (
            (
                _code(key),
                _code(
                    "" if field.default is None or field.is_required() else text_of(field.default)
                ),
                field.description or "",
            )
            for key, field in entry.model_fields.items()
        ),
    )


#: What stands between the lines <!-- NAME --> and <!-- /NAME --> of the page.
TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "workers": workers_table,
    "launchers": launchers_table,
}


def with_tables(page: str) -> str:
    """The page with the tables between their markers made anew."""
    for name, table in TABLES.items():
        page = _with(page, name, table())
    return page


def _with(page: str, name: str, table: str) -> str:
    before, begin, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->\n")
    if not (begin and end):
        raise ValueError(f"the page lacks the lines <!-- {name} --> and <!-- /{name} -->; add both")
    return before + begin + table + end + after


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head)]
    lines += [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def main() -> None:
    page = CONFIGURATION_PAGE.read_text(encoding="utf-8")
    CONFIGURATION_PAGE.write_text(with_tables(page), encoding="utf-8")


if __name__ == "__main__":
    main()
