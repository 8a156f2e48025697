"""Write the parts of the documentation that follow from the code: ``python scripts/docs.py``."""

from __future__ import annotations

from pathlib import Path

from comfyfleet.config import SETTINGS

SETTINGS_PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
BEGIN = "<!-- settings -->\n"
END = "<!-- /settings -->\n"


def settings_table() -> str:
    """All settings as a Markdown table, in the order of ``config.SETTINGS``."""
    rows = [
        f"| `{setting.env}` | {f'`{setting.default}`' if setting.default else ''} "
        f"| {setting.help.replace('|', chr(92) + '|')} |"
        for setting in SETTINGS
    ]
    return "\n".join(["| Variable | Default | What it does |", "| --- | --- | --- |", *rows, ""])


def with_table(page: str) -> str:
    """The settings page with the table between its markers made anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks the lines {BEGIN.strip()} and {END.strip()}; add both")
    return before + begin + settings_table() + end + after


def main() -> None:
    page = SETTINGS_PAGE.read_text(encoding="utf-8")
    SETTINGS_PAGE.write_text(with_table(page), encoding="utf-8")


if __name__ == "__main__":
    main()
