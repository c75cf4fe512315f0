"""Licences in a CycloneDX list of parts, counted; by name those that are not declared or ask for more than a notice.

    python .ci/licences.py sbom.json
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ASKS_MORE = re.compile(r"\b(A?GPL|LGPL|MPL|EPL|CDDL|Proprietary|NVIDIA)", re.IGNORECASE)


def licence_of(component: dict[str, Any]) -> str:
    """Its SPDX expression, ids or names in a line; "" where it declares none."""
    said = []
    for entry in component.get("licenses", []):
        licence = entry.get("license", {})
        said.append(entry.get("expression") or licence.get("id") or licence.get("name") or "")
    return " / ".join(dict.fromkeys(filter(None, said)))


def main(file: str) -> None:
    components = json.loads(Path(file).read_text())["components"]
    parts = {f"{one['name']} {one.get('version', '')}": licence_of(one) for one in components}
    if not parts:
        sys.exit(f"error: {file} lists nothing")
    print(f"{file}: {len(parts)} parts")
    for licence, count in Counter(parts.values()).most_common():
        print(f"  {count:4} {licence.splitlines()[0][:90] if licence else 'none declared'}")
    for name, licence in sorted(parts.items()):
        if not licence or ASKS_MORE.search(licence):
            print(f"look at: {name}: {licence.splitlines()[0][:90] if licence else 'none declared'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
