"""Twenty kills at random instants, over both stages and two layouts; `make test-kills` makes more of them."""

import subprocess
import sys

import pytest

from tests.models.test_resume import ROOT, environment


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_runs_killed_at_random_instants_end_bit_for_bit(tmp_path):
    def call(kills: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "tests.kills", str(kills), str(tmp_path)]
        return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=3400)

    done = call(20)
    assert done.returncode == 0 and "WRONG" not in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]
    runs = (tmp_path / "kills.jsonl").read_text()
    again = call(20)  # nothing is left to do
    assert again.stdout.splitlines()[-5:] == done.stdout.splitlines()[-5:] and (tmp_path / "kills.jsonl").read_text() == runs
