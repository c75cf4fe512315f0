"""A chain is put into the queue of stand-ins for Slurm's programs, which write down how they were called."""

import os

import pytest

from tests.planning.test_chain import asked
from vold_nemo.config import ConfigError
from vold_nemo.planning import missing, submission
from vold_nemo.planning.queue import states

PROGRAMS = {
    # --states=RUNNING shows the file queue.RUNNING
    "squeue": '[[ ! -e "${S}/down" ]] || { echo "Unable to contact slurm controller" >&2; exit 1; }\n'
              'for word; do [[ "${word}" != --states=* ]] || cat "${S}/queue.${word#--states=}" 2>/dev/null; done; true',
    "scancel": 'echo "scancel $*" >>"${S}/calls"',
    "sbatch": 'if [[ "$1" == --test-only ]]; then\n'
              'grep -q "partition=nowhere" || exit 0\necho "invalid partition" >&2\nexit 1\nfi\n'
              'echo "sbatch $*" >>"${S}/calls"\nn=$(($(cat "${S}/n" 2>/dev/null || echo 100) + 1))\n'
              'echo "${n}" >"${S}/n"\necho "${n};c"',
}  # fmt: skip


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("S", str(folder))
    return folder


def calls(slurm) -> list[str]:
    said = (slurm / "calls").read_text().splitlines() if (slurm / "calls").exists() else []
    (slurm / "calls").unlink(missing_ok=True)
    return said


def test_a_chain_is_submitted_once_and_what_a_changed_key_touches_again_behind_its_own_job(slurm, tmp_path):
    folder, wished = tmp_path / "slurm", asked(tmp_path)
    folder.mkdir()
    first = submission.decisions(wished, ["sft", "export_sft"], folder)
    assert [submission.describe(one).split(":")[0] for one in first] == [
        "sft          would be submitted", "export_sft   would be submitted",
    ]  # fmt: skip
    assert not calls(slurm) and not list(folder.iterdir())
    said = list(submission.submit(first, folder))
    assert [line.split()[:2] for line in said] == [["sft", "101"], ["export_sft", "102"]]
    assert calls(slurm) == [
        f"sbatch --parsable --kill-on-invalid-dep=yes {folder}/sft.sbatch",
        f"sbatch --parsable --kill-on-invalid-dep=yes --dependency=afterok:101 {folder}/export_sft.sbatch",
    ]
    (slurm / "queue.RUNNING").write_text("101\n7\n")
    (slurm / "queue.PENDING").write_text("102\n")
    assert states() == {"101": "RUNNING", "7": "RUNNING", "102": "PENDING"}
    again = submission.decisions(wished, ["sft", "export_sft"], folder)
    assert [(one.action, one.job) for one in again] == [("kept", "101"), ("kept", "102")]

    (folder / "export_sft.done").write_text("of another time\n")
    changed = submission.decisions(asked(tmp_path, sft__steps=3), ["sft", "export_sft"], folder)
    list(submission.submit(changed, folder))
    assert calls(slurm) == [
        "scancel 101",
        f"sbatch --parsable --kill-on-invalid-dep=yes --dependency=afterany:101 {folder}/sft.sbatch",
        "scancel 102",
        f"sbatch --parsable --kill-on-invalid-dep=yes --dependency=afterok:103,afterany:102 {folder}/export_sft.sbatch",
    ]
    assert not (folder / "export_sft.done").exists() and submission.read_record(folder, "sft").after == ["101"]

    (slurm / "queue.RUNNING").unlink()
    (slurm / "queue.PENDING").unlink()
    wished = asked(tmp_path, sft__steps=3)
    (folder / "sft.done").write_text(next(one.digest for one in wished if one.stage.name == "sft") + "\n")
    last = submission.decisions(wished, ["sft", "export_sft"], folder)
    assert [(one.action, one.why) for one in last] == [("done", ""), ("submit", "job 104 ended without success")]


def test_stages_that_were_shared_out_otherwise_are_done_when_all_of_their_jobs_were(slurm, tmp_path):
    folder, wished = tmp_path / "slurm", asked(tmp_path, traces__shards=3)
    folder.mkdir()
    list(submission.submit(submission.decisions(wished, ["traces"], folder), folder))
    for index in range(3):
        assert submission.decisions(asked(tmp_path), ["traces"], folder)[0].action == "submit"
        (folder / f"traces.{index}.done").write_text(wished[0].digest)
    assert submission.decisions(asked(tmp_path), ["traces"], folder)[0].action == "done"


def test_a_queue_that_cannot_be_read_is_not_an_empty_one(slurm, tmp_path):
    (slurm / "down").touch()
    with pytest.raises(ConfigError, match="Unable to contact slurm controller"):
        submission.decisions(asked(tmp_path), [], tmp_path)


def test_what_slurm_refuses_and_what_is_missing_is_named_before_anything_is_submitted(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = {"cluster__launch__partition": "nowhere", "cluster__launch__python": "/nowhere/python"}
    from tests.planning.test_chain import configured

    config = configured(**changed)
    decided = submission.decisions(asked(tmp_path, **changed), ["sft", "vold", "evaluate"], tmp_path / "slurm")
    (refused,) = submission.refusals(decided)
    assert refused.key == "sbatch --test-only of sft, vold, evaluate" and refused.value == "invalid partition"
    found = [error.key for error in missing.findings(config, decided)]
    assert found[-1] == "cluster.launch.python" and {"traces.path", "vold.start", "sft.run", "vold.run"} <= set(found)
    whole = submission.decisions(asked(tmp_path, **changed), [], tmp_path / "slurm")
    made = {error.key for error in missing.findings(config, whole)}
    assert not made & {"traces.path", "vold.start", "sft.run", "vold.run"}  # stages before them make these
    assert not calls(slurm)


def test_one_chain_is_submitted_by_one_at_a_time(tmp_path):
    with submission.alone(tmp_path / "slurm"), pytest.raises(ConfigError, match="nobody else submits"), submission.alone(
        tmp_path / "slurm"
    ):
        pass
