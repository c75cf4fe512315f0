"""Items are killed when their time is over, cost only themselves, and leave a line at once; no line says more than was seen."""

import io
import json
import os
import time

import pytest

from tests.gpu import acceptance, facts, items, runner

FACTS = {
    "evidence": "unpinned", "gpu": "a test's", "versions": {"torch": "2.11.0"}, "unpinned": {"torch": "2.11.0, pinned: 2.13.0"},
}  # fmt: skip
GOOD = '{"status": "passed", "figures": {"bytes": 3}, "limits": {"bytes": {"at_most": 4, "because": "so", "holds": true}}}'
BAD = GOOD.replace("passed", "failed").replace("true", "false")


def job(name: str, script: str, seconds: float = 20, rehearsal: str | None = None) -> runner.Job:
    """``script`` finds the result's file in $1."""
    return runner.Job(name, "a test", seconds, lambda file: ["sh", "-c", script, "sh", str(file)], rehearsal)


def written(text: str) -> str:
    return f"printf '%s' '{text}' >$1"


def run(*jobs: runner.Job, total: float = 60) -> list[dict]:
    out = io.StringIO()
    out.fileno = lambda: 1 << 20  # no file: there is nothing to sync
    lines = runner.run_all(jobs, total=total, facts=FACTS, out=out, tell=lambda text: None)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == lines
    return lines


def test_one_item_that_hangs_crashes_or_fails_costs_only_itself(tmp_path):
    pid = tmp_path / "pid"
    hangs = f"trap '' TERM; sleep 60 & echo $! >{pid}; echo on its way; wait"
    began = time.monotonic()
    lines = run(
        job("hangs", hangs, 1.0), job("crashes", "echo last words; kill -SEGV $$"), job("leaves", "exit 3"),
        job("bad", written(BAD)), job("late", written(GOOD) + "; sleep 60", 1.0), job("good", written(GOOD)),
    )  # fmt: skip
    assert time.monotonic() - began < 15
    hung, crashed, left, bad, late, good = lines
    assert (hung["status"], hung["tail"]) == ("timed out", "on its way") and 1 <= hung["seconds"] < 5
    with pytest.raises(ProcessLookupError):  # what it started has gone, too
        os.kill(int(pid.read_text()), 0)
    assert crashed["status"] == "failed" and "SIGSEGV" in crashed["error"] and crashed["tail"] == "last words"
    assert left["status"] == "failed" and "exit code 3" in left["error"]
    assert bad["status"] == "failed" and bad["figures"] == {"bytes": 3}
    assert late["status"] == good["status"] == "passed"  # whose result is whole has done its work
    assert all(line["evidence"] == "unpinned" and line["versions"] == FACTS["versions"] for line in lines)
    assert runner.exit_code(lines) == 1 and runner.exit_code([good]) == 0
    said = runner.summary(lines)
    assert "not done after 1 s" in said and "bytes = 3; at most 4: so" in said and "torch 2.11.0, pinned: 2.13.0" in said


def test_a_line_is_on_disk_before_the_next_item_begins(tmp_path):
    file = tmp_path / "lines"
    with file.open("a") as out:
        jobs = [job("first", written(GOOD)), job("second", f"grep -q first {file} && {written(GOOD)}")]
        lines = runner.run_all(jobs, total=60, facts={}, out=out, tell=lambda text: None)
    assert [line["status"] for line in lines] == ["passed", "passed"]


def test_a_rehearsed_item_never_says_passed_and_one_that_is_skipped_says_why():
    skipped = '{"status": "skipped", "reason": "no FP8 here", "figures": {}, "limits": {}}'
    lines = run(job("a", written(GOOD), rehearsal="fake"), job("b", written(skipped)), job("c", written(BAD), rehearsal="cpu"))
    assert [line["status"] for line in lines] == ["rehearsed", "skipped", "failed"]
    assert lines[0]["rehearsal"] == "fake" and "no FP8 here" in runner.summary(lines)
    assert runner.exit_code(lines[:2]) == 0 and runner.exit_code(lines) == 1
    assert runner.exit_code(lines[1:2]) == 1  # nothing ran


def test_what_does_not_fit_into_the_whole_time_is_skipped_and_says_so():
    first, second = run(job("slow", "sleep 60", 20), job("next", written(GOOD), 20), total=1.5)
    assert first["status"] == "skipped" and second["status"] == "skipped"  # less than an item needs to begin
    first, second = run(job("slow", "sleep 60", 1.5), job("next", written(GOOD), 20), total=11)
    assert first["status"] == "timed out" and second["status"] == "skipped" and "are over" in second["reason"]


def test_the_items_fit_into_eight_minutes_and_their_code_is_there():
    assert items.TOTAL == 480 and sum(item.seconds for item in items.ITEMS) <= items.TOTAL
    for item in items.ITEMS:
        module, name = item.function.split(":")
        assert f"\ndef {name}(place: Place)" in (facts.ROOT / "tests/gpu" / f"{module}.py").read_text()


def test_without_a_gpu_it_leaves_with_2_and_says_the_way_out(monkeypatch, capsys):
    monkeypatch.setattr(runner, "seen_by_torch", lambda environment: {"cuda": None, "gpu": None})
    assert acceptance.main([]) == 2
    said = capsys.readouterr().err
    assert "a CPU build" in said and "slurm/acceptance.sbatch" in said and "REHEARSE=1" in said
    with pytest.raises(SystemExit) as left:
        acceptance.main(["--only", "fp8_linaer"])
    assert left.value.code == 2 and "fp8_linear" in capsys.readouterr().err


def test_evidence_is_pinned_only_where_no_library_differs_from_the_constraints():
    pinned = {"torch": "2.13.0", "transformer-engine": "2.20.2", "vllm": "0.32.0"}
    assert facts.evidence({"torch": "2.13.0+cu130", "transformer-engine": "2.20.2", "vllm": None}, pinned) == ("pinned", {})
    level, other = facts.evidence({"torch": "2.11.0+cu130", "transformer-engine": "2.20.2"}, pinned)
    assert level == "unpinned" and other == {"torch": "2.11.0+cu130, pinned: 2.13.0"}
    assert facts.pins()["megatron-core"] and {"python", *facts.LIBRARIES} == set(facts.versions())


def test_a_limit_is_judged_only_where_its_kind_of_number_is_real():
    from tests.gpu.place import Place

    held = {}
    for kind in ("gpu", "cpu", "fake"):
        place = Place(kind)
        for of in ("value", "bytes", "rate"):
            place.check(of, 2.0, "so", at_most=1.0, kind=of)
            held[kind, of] = place.limits[of]["holds"]
            assert (place.figures[of] is None) == (held[kind, of] is None)
        place.check("no number", float("nan"), "so", at_most=1.0)
        assert place.limits["no number"]["holds"] in (False, None)
    real = {("gpu", "value"), ("gpu", "bytes"), ("gpu", "rate"), ("cpu", "value"), ("fake", "bytes")}
    assert {where for where, fine in held.items() if fine is False} == real


def test_an_item_that_breaks_or_is_outside_its_limit_fails_and_keeps_its_figures(monkeypatch):
    from tests.gpu import child

    class Item:
        def __init__(self, body):
            self.load = lambda: body

    def outside(place):
        place.say(seen=1)
        place.check("error", 0.5, "so", at_most=0.1)

    said = child.run(Item(outside), "cpu")
    assert said["status"] == "failed" and "error" in said["error"] and said["figures"] == {"seen": 1, "error": 0.5}
    said = child.run(Item(lambda place: place.needs_fp8()), "cpu")
    assert said["status"] == "skipped" and "FP8 needs a GPU" in said["reason"]
    said = child.run(Item(lambda place: 1 / 0), "cpu")
    assert said["status"] == "failed" and "ZeroDivisionError" in said["error"] and said["trace"]


def test_the_rehearsed_peaks_are_of_the_configurations_that_are_run():
    from tests.gpu.expected import NAMES
    from tests.gpu.step import COMPARED, EXPECTED, configured, overrides_of
    from vold_nemo.rehearsal.kept import digest

    kept = json.loads(EXPECTED.read_text())
    assert {key for key in NAMES if key.endswith((" 8.0", " 9.0"))} <= set(kept) <= set(NAMES)
    for key, found in kept.items():
        name, capability = key.split()
        config = configured([*overrides_of(name), f"cluster.compute_capability={capability}"])
        assert digest(config) == found["configuration"], f"{key}: python -m tests.gpu.expected makes it anew"
        assert not found["violations"] and all(found["peaks"][phase] > 0 for phase in COMPARED), key
