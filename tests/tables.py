"""Tables of cases as JSONL beside the tests that read them: one case a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def table(file: Path, *names: str) -> list[tuple]:
    """Of each line of ``file`` what it says of ``names``."""
    return [tuple(row[name] for name in names) for row in rows(file)]
