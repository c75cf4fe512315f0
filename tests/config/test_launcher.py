"""Exit codes are a contract with batch scripts and people: here the numbers themselves are pinned."""

import os
import re
import subprocess
import sys

import pytest

from vold_nemo.config.launcher import CONFIGURATION_ERROR, INTERRUPTED, STOPPED_BY_SIGNAL, STUCK
from vold_nemo.config.places import recipes, root, slurm


def test_the_codes_are_those_that_the_readme_and_the_batch_script_know():
    assert (CONFIGURATION_ERROR, STOPPED_BY_SIGNAL, STUCK, INTERRUPTED) == (2, 85, 86, 130)
    told = (root() / "README.md").read_text().partition("Exit codes:")[2].partition("\n\n")[0]
    assert all(f"{code} " in told for code in (CONFIGURATION_ERROR, STOPPED_BY_SIGNAL, STUCK, INTERRUPTED))
    assert f'"${{code}}" -ne {STOPPED_BY_SIGNAL} ]] || put_back' in (slurm() / "stage.sbatch").read_text()


RANKS = {
    "torchrun": {"RANK": "{rank}", "WORLD_SIZE": "8", "LOCAL_RANK": "{rank}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    "srun": {"SLURM_PROCID": "{rank}", "SLURM_STEP_NODELIST": "n[1-8]", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8",
             "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_TASKS_PER_NODE": "1(x8)"},
}  # fmt: skip


@pytest.mark.parametrize("launcher", RANKS)
def test_a_verb_of_one_process_is_done_by_the_first_of_eight_tasks_which_says_so(launcher):
    program = (
        "from vold_nemo.config.launcher import stands_alone, launch\n"
        "print(stands_alone('report'), launch().world, launch().by_launcher)"
    )
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "RANK", "WORLD", "LOCAL"))}
    for rank, (said, told) in enumerate([("True 1 False", "report is one process: task 0 of 8 does it"), ("False 8 True", "")]):
        variables = {key: value.format(rank=rank) for key, value in RANKS[launcher].items()}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**inherited, **variables})
        assert done.stdout.strip() == said and told in done.stderr and bool(done.stderr) == bool(told)


def test_which_verbs_are_one_process():
    """The others share their work out over tasks, or refuse them (chain), or are asked on each rank (doctor)."""
    together = {"chain", "doctor", "evaluate", "generate_traces", "sft", "stage_weights", "teacher_drift", "vold"}
    alone = {file.stem for file in recipes().glob("*.py") if re.search(r"alone=|stands_alone\(", file.read_text())}
    assert alone | together == {file.stem for file in recipes().glob("*.py")} and not alone & together
