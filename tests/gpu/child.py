"""One item in a process of its own: ``python -m tests.gpu.child NAME KIND FILE [CAPABILITY]`` writes what it found to FILE."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from tests.gpu.items import FAKE, ITEMS


def run(item, kind: str) -> dict:
    """{"status": passed | failed | skipped, "figures", "limits", "error" or "reason"} of ``item``."""
    from tests.gpu.place import Place, Skipped
    from vold_nemo.command.quiet import quiet

    quiet()
    place = Place(kind)
    said: dict = {"status": "passed"}
    try:
        item.load()(place)
    except Skipped as reason:
        said = {"status": "skipped", "reason": str(reason)}
    except Exception as error:
        lines = traceback.format_exc().strip().splitlines()
        said = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:2000], "trace": lines[-24:]}
    broken = [name for name, limit in place.limits.items() if limit["holds"] is False]
    if broken and said["status"] == "passed":
        said = {"status": "failed", "error": f"outside its limit: {', '.join(broken)}"}
    return said | {"figures": place.figures, "limits": place.limits}


def main(name: str, kind: str, file: str, capability: str = "9.0") -> None:
    item = next(item for item in ITEMS if item.name == name)
    if kind == FAKE:
        from tests.gpu import played

        with played.gpu(tuple(map(int, capability.split(".")))):
            said = run(item, kind)
    else:
        said = run(item, kind)
    aside = Path(f"{file}.part")
    aside.write_text(json.dumps(said))
    os.replace(aside, file)
    sys.stdout.flush()
    os._exit(0)  # what libraries do at a process' end (NCCL, vLLM, threads) may hang, and is no part of the item


if __name__ == "__main__":
    main(*sys.argv[1:])
