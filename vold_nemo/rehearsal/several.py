"""The telling ranks of both stages and the export, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vold_nemo.config import Config, ConfigError
from vold_nemo.planning.plan import stage_gpus
from vold_nemo.rehearsal import kept


def telling(config: Config) -> Iterator[tuple[str, int]]:
    """(stage, rank): of the first, a middle and the last pipeline stage the first rank, and one that holds other experts;
    then the export."""
    for stage in ("sft", "vold"):
        world, pipeline = config.rehearse.world or stage_gpus(config, stage), config.parallel.pipeline
        each = world // pipeline
        for number in sorted({0, pipeline // 2, pipeline - 1}):
            yield stage, number * each
            if config.parallel.expert > 1 and each > 1 and stage == "vold":
                yield stage, number * each + min(each, config.parallel.expert) - 1
    yield "export", 0


def world(config: Config, stage: str) -> int:
    return 1 if stage == "export" else config.rehearse.world or stage_gpus(config, stage)


def rehearse_all(config: Config, argv: Sequence[str]) -> list[dict[str, Any]]:
    """What each found; ``argv`` is this process' own.

    Raises:
        ConfigError: one of them could not begin.
    """
    from tqdm import tqdm

    found = []
    for stage, rank in tqdm(list(telling(config)), unit="rank", desc="rehearsal"):
        file = Path(config.rehearse.path) / kept.name(stage, rank, world(config, stage))
        file.unlink(missing_ok=True)
        asked = [argv[0], *argv[1:], "rehearse.all=false", f"rehearse.stage={stage}", f"rehearse.rank={rank}"]
        done = subprocess.run([sys.executable, *asked], text=True, capture_output=True)
        if not file.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()
            mend = f"see it whole: {' '.join(asked)}"
            raise ConfigError(f"rehearsal of {stage}, rank {rank}", said[-1], "one that comes to its end", mend)
        for note in (line for line in done.stderr.splitlines() if line.startswith("note:")):
            tqdm.write(note)
        tqdm.write(done.stdout.partition("\nwritten:")[0] + "\n")
        found.append(json.loads(file.read_text()))
    return found
