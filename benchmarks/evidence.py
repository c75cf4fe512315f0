"""What has been run of each shipped experiment: kept in results/evidence.json, and said in the experiment's own file.

    make rehearse && python benchmarks/evidence.py rehearsed          every experiment for GPUs, from outputs/<name>/rehearsal
    make demo && python benchmarks/evidence.py demo outputs/miniature_tp2

A record holds what the experiment *sets* (each key that differs from the defaults), so that a changed file is noticed: a test
fails until it is run again or its record is taken out, and it is ``planned`` (``tests/test_evidence.py``).  A changed default
is not noticed.  A rehearsal counts when all telling ranks of both
stages and the export were rehearsed of the configuration as it is now, without a violation.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from omegaconf import OmegaConf  # noqa: E402

from vold_nemo.config.compose import compose  # noqa: E402
from vold_nemo.config.literal import literal, read_yaml  # noqa: E402
from vold_nemo.config.places import conf  # noqa: E402
from vold_nemo.config.tree import values  # noqa: E402

KEPT = ROOT / "benchmarks/results/evidence.json"
PLANNED, REHEARSED, CPU, GPU = LEVELS = ("planned", "rehearsed", "run on a CPU in miniature", "run on a GPU")
# What names and shows a run does not change what is run.
ASIDE = re.compile(r"(name|outputs|evidence|explain|search|strict|dry_run|sbatch)$|(report|compare|reproduce|logging|plan)\."
                   r"|cluster\.(name|launch\.|\w+_gbs|\w+_tflops)")


def experiments() -> list[str]:
    return sorted(file.stem for file in (conf() / "experiment").glob("*.yaml"))


@functools.cache
def _values(*overrides: str) -> dict[str, Any]:
    return {key: value for key, _, value in values(compose(list(overrides)))}


def sets(name: str, *overrides: str) -> dict[str, Any]:
    """Key: value, of all that the experiment sets otherwise than ``conf/config.yaml`` does, but for what follows its name."""
    asked = (f"experiment={name}", *overrides)
    usual, found, renamed = _values(), _values(*asked), _values(*asked, "name=another")
    return {
        key: value for key, value in found.items()
        if not ASIDE.match(key) and value != usual.get(key) and value == renamed[key]
    }  # fmt: skip


def records() -> dict[str, dict[str, Any]]:
    return json.loads(KEPT.read_text()) if KEPT.is_file() else {}


def said(record: dict[str, Any] | None) -> str:
    """The words of ``evidence:`` for a record: level, day, versions."""
    if record is None:
        return PLANNED
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"{record['level']} {record['date']} ({versions})"


def rehearsed(name: str) -> dict[str, Any]:
    """The record of an experiment whose telling ranks lie in its ``rehearse.path``.

    Raises:
        SystemExit: a rank is missing, or one had a violation.
    """
    from vold_nemo.rehearsal import kept
    from vold_nemo.rehearsal.several import telling, world

    config = compose([f"experiment={name}"])
    found = {(one["stage"], one["rank"], one["world"]): one for one in kept.of(config)}
    wanted = [(stage, rank, world(config, stage)) for stage, rank in telling(config)]
    missing = [f"{stage} rank {rank} of {of}" for stage, rank, of in wanted if (stage, rank, of) not in found]
    if missing:
        raise SystemExit(f"{name}: not rehearsed as it is now: {', '.join(missing)}; make rehearse first")
    ranks = [found[one] for one in wanted]
    wrong = [f"{one['stage']} rank {one['rank']}: {bad['what']}" for one in ranks for bad in one["violations"]]
    if wrong:
        raise SystemExit(f"{name}: {'; '.join(wrong)}")
    layers = next(one["layers"] for one in ranks if one["stage"] != "export")
    engine = re.fullmatch(r"(Transformer Engine) ([\d.]+)'s", layers)
    return {
        "level": REHEARSED, "date": min(one["when"] for one in ranks)[:10],
        "versions": ranks[0]["versions"] | ({engine[1]: engine[2]} if engine else {}),
        "ranks": [f"{stage} {rank} of {of}" for stage, rank, of in wanted],
        "micro_batches": {one["stage"]: one["micro_batches"] for one in ranks if one["stage"] != "export"},
        "sets": sets(name),
    }  # fmt: skip


def demo(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(experiment, record) of both arms of stage 2 that ``make demo`` left in ``folder``: accuracies.

    Raises:
        SystemExit: an arm is not there, or was run with other settings than its experiment has now.
    """
    results = folder / "evaluation/results.json"
    if not results.is_file():
        raise SystemExit(f"{results} is not there: make demo first")
    accuracy = json.loads(results.read_text())["accuracy"]
    day = datetime.fromtimestamp(results.stat().st_mtime, UTC).date().isoformat()
    base = folder.name.rpartition("_")[0]
    for name, arm in ((base, "sft_vold"), (f"{base}_grpo", "sft_grpo")):
        ran = OmegaConf.create(literal(read_yaml(folder / arm / "config.yaml")))
        asked = sets(name, f"outputs={ran.outputs}")
        other = [key for key, value in asked.items() if OmegaConf.select(ran, key) != value]
        if other:
            raise SystemExit(f"{folder}/{arm}: run with another {', '.join(other)} than {name} has now: make demo anew")
        arms = accuracy if name == base else (arm,)
        shown = {one: {kind: accuracy[one][kind]["value"] for kind in ("text", "image")} for one in arms}
        yield name, {
            "level": CPU, "date": day, "versions": {one: version(one) for one in ("torch", "megatron-core")},
            "layout": folder.name.rpartition("_")[2], "seed": ran.seed,
            "questions": accuracy[arm]["image"]["n"], "accuracy": shown,
            "sets": sets(name),
        }  # fmt: skip


def write(found: dict[str, dict[str, Any]]) -> None:
    """Keep the records, and put their words into the experiments' files."""
    kept = {name: record for name, record in (records() | found).items() if name in experiments()}
    KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1, default=str) + "\n")
    for name in experiments():
        file = conf() / "experiment" / f"{name}.yaml"
        text, line = file.read_text(), f"evidence: {said(kept.get(name))}"
        file.write_text(re.sub(r"^evidence: .*$", line, text, flags=re.M) if "\nevidence: " in text
                        else re.sub(r"(?m)\A((?:.*\n)*?)(?=^\w)", rf"\g<1>{line}\n", text, count=1))  # fmt: skip
        print(f"{name:<32}{said(kept.get(name))}")


def main(arguments: list[str]) -> None:
    match arguments:
        case ["rehearsed", *names]:
            from vold_nemo.rehearsal.experiments import for_gpus

            write({name: rehearsed(name) for name in names or for_gpus()})
        case ["demo", *folder]:
            write(dict(demo(Path(folder[0] if folder else "outputs/miniature_tp2"))))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
