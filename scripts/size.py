"""Print how large the code is. It fails nothing: the numbers are there to be seen."""

from __future__ import annotations

import sys
from pathlib import Path


def lines(path: Path) -> int:
    return sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    for part in ("src", "tests", "benchmarks", "demo"):
        sizes = {path: lines(path) for path in (root / part).rglob("*.py")}
        longest = max(sizes, key=lambda path: sizes[path])
        sys.stdout.write(
            f"{part:<11}{sum(sizes.values()):>6} lines in {len(sizes):>3} files; "
            f"longest {longest.relative_to(root)} ({sizes[longest]})\n"
        )


if __name__ == "__main__":
    main()
