"""Exit codes are a contract with batch scripts and people: here the numbers themselves are pinned."""

from vold_nemo.config.launcher import CONFIGURATION_ERROR, INTERRUPTED, STOPPED_BY_SIGNAL, STUCK
from vold_nemo.config.places import root, slurm


def test_the_codes_are_those_that_the_readme_and_the_batch_script_know():
    assert (CONFIGURATION_ERROR, STOPPED_BY_SIGNAL, STUCK, INTERRUPTED) == (2, 85, 86, 130)
    told = (root() / "README.md").read_text().partition("Exit codes:")[2].partition("\n\n")[0]
    assert all(f"{code} " in told for code in (CONFIGURATION_ERROR, STOPPED_BY_SIGNAL, STUCK, INTERRUPTED))
    assert f'"${{code}}" -ne {STOPPED_BY_SIGNAL} ]] || put_back' in (slurm() / "stage.sbatch").read_text()
