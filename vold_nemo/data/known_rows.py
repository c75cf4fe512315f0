"""Which rows a run began with: kept beside it, so that it can go on without some of them, and say which others changed.

    <run>/data_rows.json    [[id, digest of question and answer], ...] in the order of the data

A row's index decides when it comes (``data/order.py``).  One that is named in ``data.without`` keeps its index, whether it is
still in the file or not; no other row may be missing, changed or new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from vold_nemo.config import ConfigError
from vold_nemo.config.writing import replace_text
from vold_nemo.data.prompts import Prompt

FILE = "data_rows.json"
SHOWN = 8  # rows named in a message

Known = list[tuple[str, str]]


def digest(prompt: Prompt) -> str:
    """16 hex digits of what is asked and what is right; of a row that is left out, as the run began with it."""
    if prompt.digest is not None:
        return prompt.digest
    content = repr((prompt.messages, prompt.answer)).encode("utf-8", "backslashreplace")
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def write(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Write :data:`FILE` of a run that begins with ``prompts``."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / FILE, json.dumps([(prompt.id, digest(prompt)) for prompt in prompts]) + "\n")


def read(folder: Path) -> Known | None:
    """What the run began with; None where it kept no list.

    :raises ConfigError: it kept one, which cannot be read.
    """
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return [(str(name), str(value)) for name, value in found]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(str(folder / FILE), str(error)[:200], "the rows that this run began with",
                          "restore it from a copy; without the file changed rows are not named") from None  # fmt: skip


def restore(prompts: Sequence[Prompt], known: Known, without: Collection[str]) -> list[Prompt]:
    """``prompts`` in the order of ``known``, with an empty prompt for each row of ``without`` that is not there any more.

    Raises:
        ConfigError: rows that are gone, changed or new; it names them, and what would go on without them.
    """
    here = {prompt.id: prompt for prompt in prompts}
    gone = [name for name, _ in known if name not in here and name not in without]
    changed = [name for name, value in known if name in here and name not in without and digest(here[name]) != value]
    new = sorted(here.keys() - {name for name, _ in known} - set(without))
    said = [f"{what}: {_shown(names)}" for what, names in (("gone", gone), ("changed", changed), ("new", new)) if names]
    if said:
        left = [*without, *gone, *changed]
        mend = "restore the rows" + (
            f" (why they are gone may stand in rejected.jsonl), or go on without: data.without=[{','.join(left)}]"
            if not new and len(left) <= SHOWN else ", or start a new run from the exported weights"
        )  # fmt: skip
        raise ConfigError("data", "; ".join(said), "the rows that this run began with, but those of data.without", mend)
    found = []
    for name, value in known:
        prompt = here.get(name) or Prompt(name, [{"role": "user", "content": ""}])
        prompt.digest = value
        found.append(prompt)
    return found


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
