"""recipes/verify.py: every row gets a verdict or a reason for its rejection, from any file, with any verifier."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vold_nemo.config import ConfigError
from vold_nemo.config.compose import compose
from vold_nemo.config.launcher import CONFIGURATION_ERROR
from vold_nemo.evaluation.verify import verify
from vold_nemo.step import Step, records

ROOT = Path(__file__).resolve().parents[2]
OWN = "tests.rewards.own_verifiers"
ROWS = [
    {"id": "a", "text": r"\boxed{7}", "truth": "7", "reward": 0.0},
    {"id": "b", "text": r"\boxed{7.0}", "truth": 7, "reward": 0.0, "kept": [1, None]},
    {"id": "c", "text": "seven", "truth": "7", "reward": 1.0},
    {"text": "\ud800\\boxed{(B)}", "truth": "B", "judge": "choice"},
    {"id": 9, "text": "", "truth": "x", "judge": f"{OWN}:raises"},
]
BAD = [
    '{"id": 1, "text": "x"',
    *map(
        json.dumps,
        [
            {"text": None, "truth": "7"}, {"text": "x", "truth": " "}, {"text": ["x"], "truth": "7"},
            {"text": "x", "truth": True}, {"text": "x"}, ["x", "7"],
            {"text": "x", "truth": "7", "judge": "boxd"}, {"text": "x", "truth": "7", "judge": f"{OWN}:nowhere"},
            {"text": "x", "truth": "7", "judge": "timeit:timeit"},
        ],
    ),
]  # fmt: skip


def run(tmp_path, lines, *overrides):
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(lines) + "\n")
    settings = [f"verify.answers={file}", f"verify.path={tmp_path}/out", "verify.fields.verifier=judge", "reward.seconds=20"]
    listed = [f"++reward.verifiers.{name}='{OWN}:{name}'" for name in ("raises", "nowhere")]
    found = verify(compose([*settings, "reward.workers=1", *listed, *overrides]))
    return found, [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").open()]


def test_rows_keep_what_they_had_and_get_their_verdict(tmp_path):
    _, rows = run(tmp_path, map(json.dumps, ROWS))
    assert [row["reward"] for row in rows] == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert [row["extracted"] for row in rows] == ["7", "7.0", None, "B", None]
    assert [row["verifier"] for row in rows] == ["boxed"] * 3 + ["choice", f"{OWN}:raises"]
    assert rows[1] == {**ROWS[1], "reward": 0.0, "extracted": "7.0", "reason": "differs", "verifier": "boxed"}
    assert rows[4]["reason"] == "error: RuntimeError: broken verifier"
    assert not (tmp_path / "out" / "rejected.jsonl").exists()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["diagnosis.json", "verdicts.jsonl"]


def test_the_diagnosis_counts_by_verifier_and_by_reason_and_what_changed(tmp_path):
    found, _ = run(tmp_path, map(json.dumps, ROWS))
    told = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert told["verifiers"]["boxed"] == {"answers": 3, "right": 1, "reward": 1.0, "parsed": 2, "timeouts": 0, "errors": 0}
    assert told["verifiers"][f"{OWN}:raises"]["errors"] == 1
    assert told["reasons"] == {"equal": 2, "differs": 1, "no box": 1, "error: RuntimeError: broken verifier": 1}
    assert told["first"]["equal"] == "a" and told["first"]["error: RuntimeError: broken verifier"] == "9"
    assert (told["raised"], told["lowered"], told["unchanged"]) == (1, 1, 1)
    table = found.table()
    assert "3 rows had a reward: 1 are raised, 1 lowered" in table
    assert any(line.split() == ["boxed", "3", "33.3%", "0.3333", "66.7%", "0", "0"] for line in table.splitlines())


def test_bad_rows_are_written_down_with_their_reason(tmp_path):
    found, rows = run(tmp_path, [*map(json.dumps, ROWS), *BAD], "data.max_rejected_share=0.9")
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").open()]
    assert len(rows) == len(ROWS) and found.rejected == len(BAD)
    assert [line["row"] for line in rejected] == list(range(len(ROWS), len(ROWS) + len(BAD)))
    assert [line["reason"] for line in rejected] == [
        "not JSON", "response: missing", "truth: empty", "response: list instead of a string",
        "truth: bool instead of a string or number", "truth: missing", "response: missing",
        "verifier: 'boxd' does not exist", f"verifier: '{OWN}:nowhere' does not exist",
        "verifier: 'timeit:timeit' is code that the configuration does not name (reward.verifiers)",
    ]  # fmt: skip


def test_too_many_bad_rows_are_an_error_after_the_good_ones_are_written(tmp_path):
    with pytest.raises(ConfigError, match="10 of 15 rows rejected"):
        run(tmp_path, [*map(json.dumps, ROWS), *BAD])
    assert len((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()) == len(ROWS)


def test_another_verifier_another_layout_and_a_limit(tmp_path):
    rows = [{"out": [{"answer": r"\boxed{0.5}"}], "gold": {"value": r"\frac{1}{2}"}}] * 5
    fields = ["verify.fields.response=out.0.answer", "verify.fields.truth=gold.value", "verify.limit=3"]
    found, judged = run(tmp_path, map(json.dumps, rows), *fields, "reward.verifier=0.75*math+0.25*boxed")
    assert [row["reward"] for row in judged] == [0.75] * 3
    assert found.verifiers["0.75*math+0.25*boxed"].right == 0  # right is reward 1


def test_a_runs_rollouts_are_read_as_they_are_written(tmp_path):
    asked = {"id": ["p0", "p1"], "truth": ["7", "(B)"], "verifier": [None, "choice"], "text": [r"\boxed{8}", r"\boxed{B}"]}
    step = Step.of([[1], [1]], [[2], [2]], labels=asked, engine=[[0.0], [0.0]], reward=[1.0, 1.0])
    file = records.write(step, tmp_path / "step_000003.jsonl")
    found = verify(compose([f"verify.answers={file}", f"verify.path={tmp_path}/out", "verify.fields.verifier=verifier"]))
    assert (found.raised, found.lowered, found.unchanged) == (0, 1, 1)
    assert found.first == {"differs": "p0", "equal": "p1"}


@pytest.mark.parametrize("name", ["answer.jsonl", "answer.txt"])
def test_a_mistyped_file_is_refused_without_asking_the_hub_for_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr("vold_nemo.data.rows._dataset_rows", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(ConfigError, match=rf"{name}(.|\n)*a path that exists"):
        verify(compose([f"verify.answers={tmp_path}/{name}", f"verify.path={tmp_path}/out"]))


def test_the_command_prints_a_table_and_leaves_with_2_where_there_is_nothing_to_judge(tmp_path):
    def call(*overrides):
        return subprocess.run(
            [sys.executable, str(ROOT / "recipes" / "verify.py"), f"verify.path={tmp_path}/out", *overrides],
            capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
        )  # fmt: skip

    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    done = call("verify.answers=answers.jsonl")
    assert done.returncode == 0, done.stderr
    assert "boxed" in done.stdout and "3 answers in" in done.stdout
    missing = call()
    assert missing.returncode == CONFIGURATION_ERROR and "verify.answers = None" in missing.stderr


def test_a_column_that_is_not_there_is_named_with_those_that_are_and_with_the_verb_s_own_key(tmp_path):
    for rows in (3, 150):
        with pytest.raises(ConfigError) as error:
            run(tmp_path, [json.dumps({"answer_text": "x", "truth": "7"})] * rows, "verify.fields.response=answer_txt")
        assert error.value.key == "verify.fields.response"
        assert "answer_text, truth" in error.value.allowed and error.value.mend == "did you mean answer_text?"
    with pytest.raises(ConfigError) as error:
        run(tmp_path, [json.dumps({"text": 7, "truth": "7"})] * 3, "verify.fields.verifier=null")
    assert "verify.fields.*" in error.value.mend and "data.*.fields" not in error.value.mend


def test_truths_are_read_as_training_reads_keys(tmp_path):
    rows = [{"text": r"\boxed{5}", "truth": truth} for truth in (5.0, "$5$", r"\boxed{5}", "so\n#### 5", 5)]
    _, verdicts = run(tmp_path, [*map(json.dumps, rows), '{"text": "x", "truth": NaN}'], "verify.fields.verifier=null",
                      "data.max_rejected_share=0.5")  # fmt: skip
    assert [row["reward"] for row in verdicts] == [1.0] * 5
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["reason"] == "truth: missing"


def test_a_mistyped_name_is_looked_for_on_this_machine_alone(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("the network was asked"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="existing"):
        verify(compose(["verify.answers=outputs/step_10", f"verify.path={tmp_path}/out"]))
