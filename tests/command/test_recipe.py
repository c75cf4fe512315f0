"""The command line as a user meets it: exit codes, messages, and what happens before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vold_nemo.config.launcher import CONFIGURATION_ERROR, INTERRUPTED, STOPPED_BY_SIGNAL

ROOT = Path(__file__).resolve().parents[2]
RECIPE = '''
"""Stage of a test.  It says what it was given."""
import sys
from vold_nemo.command import recipe
from vold_nemo.config import Config, ConfigError

@recipe(reads=("sft", "vold", "seed"), training={training})
def main(config: Config) -> None:
    print("ran", config.sft.steps, config.vold.steps, "nemo" in sys.modules)
    if config.seed == 2:
        raise ConfigError("rows", 7, "at most 5 %", "repair them")
    if config.seed == 85:
        sys.exit(85)
    if config.seed == 3:
        raise RuntimeError("broken")
    if config.seed == 4:
        raise KeyboardInterrupt

if __name__ == "__main__":
    main()
'''


@pytest.fixture
def call(tmp_path):
    """``call(*overrides, verb=, training=, **environment)``: run a recipe from an empty folder; the finished process."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (tmp_path / "cwd").mkdir()

    def run(*overrides: str, verb: str = "stage", training: bool = False, **environment: str):
        script = folder / f"{verb}.py"
        script.write_text(RECIPE.format(training=training))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "RANK", "WORLD"))}
        path = os.pathsep.join([*environment.pop("path", "").split(os.pathsep), str(ROOT)]).strip(os.pathsep)
        return subprocess.run(
            [sys.executable, str(script), *overrides], cwd=tmp_path / "cwd", capture_output=True, text=True, timeout=120,
            env={**inherited, "PYTHONPATH": path, **environment},
        )  # fmt: skip

    run.folder = tmp_path / "cwd"
    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Random miniature checkpoints: 2 layers, 4 heads, 2 key-value heads."""
    from vold_nemo.miniature.random_models import write_random_student, write_random_teacher

    folder = tmp_path_factory.mktemp("world")
    write_random_student(folder / "base")
    write_random_teacher(folder / "teacher")
    return folder


@pytest.fixture
def poisoned_nemo(tmp_path) -> str:
    """A search path on which importing NeMo or torch fails."""
    for package in ("nemo", "torch"):
        (tmp_path / "poison" / package).mkdir(parents=True)
        (tmp_path / "poison" / package / "__init__.py").write_text("raise SystemExit('imported too early')")
    return str(tmp_path / "poison")


def test_a_recipe_runs_from_any_folder_and_leaves_nothing_behind(call):
    done = call("experiment=miniature", "sft.steps=3")
    assert (done.returncode, done.stdout) == (0, "ran 3 70 False\n")
    assert list(call.folder.iterdir()) == []


@pytest.mark.parametrize(
    "seed, code, told",
    [
        ("2", CONFIGURATION_ERROR, "rows = 7"), ("85", STOPPED_BY_SIGNAL, ""), ("3", 1, "RuntimeError: broken"),
        ("4", INTERRUPTED, "interrupted"),
    ],
)
def test_exit_codes_tell_bad_input_a_signal_and_a_crash_apart(call, seed, code, told):
    done = call(f"seed={seed}")
    assert done.returncode == code
    assert told in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)
    assert "overrides" not in done.stderr  # Hydra's own words before an error


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["sft.stps=3"], ["sft.stps = '3'", "allowed:", "did you mean sft.steps?"]),
        (["sft.steps=many"], ["sft.steps = 'many'", "int"]),
        (["student=nobody"], ["student = 'nobody'", "qwen2_5_vl_3b"]),
        (["sft={"], ["command line", "quote it"]),
        (["objective.kl.mask=most", "vold.steps=0"], ["objective.kl.mask = 'most'", "all_wrong_group", "vold.steps = 0"]),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_bad_input_leaves_with_2_and_one_message_before_anything_heavy_is_imported(
    call, poisoned_nemo, overrides, told, training
):
    done = call(*overrides, training=training, path=poisoned_nemo)
    assert done.returncode == CONFIGURATION_ERROR
    assert all(part in done.stderr for part in told), done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    "layout, told",
    [
        (["parallel.tensor=3"], "a divisor of 4 attention heads: 1, 2, 4"),
        (["parallel.pipeline=4"], "2 layers can be shared out over: 1, 2"),
        (["parallel.tensor=2"], "a multiple of tensor x pipeline = 2 x 1"),  # one process was started
        (["parallel.sequence=true"], "false where parallel.tensor is 1"),
        (["parallel.context=2"], "context"),
        (["parallel.expert=2"], "expert"),
    ],
)
def test_an_impossible_layout_leaves_with_2_before_a_process_group_is_made(call, world, poisoned_nemo, layout, told):
    done = call("experiment=miniature", f"miniature.path={world}", *layout, verb="sft", training=True, path=poisoned_nemo)
    assert done.returncode == CONFIGURATION_ERROR
    assert told in done.stderr and "mend:" in done.stderr


def test_only_rank_0_speaks_of_what_all_ranks_find(call):
    silent = call("sft.stps=3", RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    assert (silent.returncode, silent.stderr) == (CONFIGURATION_ERROR, "")
    assert "sft.stps" in call("sft.stps=3", RANK="0", WORLD_SIZE="2", LOCAL_RANK="0").stderr


def test_dry_run_prints_configuration_and_plan_and_runs_nothing(call, world, poisoned_nemo):
    done = call(
        "experiment=miniature", f"miniature.path={world}", "dry_run=true", "parallel=tp2", verb="vold", training=True,
        path=poisoned_nemo,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ran" not in done.stdout.split()
    assert "not here yet: vold.start = " in done.stderr and "sft.py" in done.stderr
    assert "estimator: reverse" in done.stdout
    assert "2 ranks = tensor 2 x pipeline 1 x data 1" in done.stdout
    assert list(call.folder.iterdir()) == []


@pytest.mark.parametrize("flag, everything", [("--help", False), ("-h", False), ("--help=all", True)])
def test_help_prints_the_recipes_docstring_and_the_keys_that_it_reads_or_all(call, poisoned_nemo, flag, everything):
    done = call(flag, "experiment=nobody", training=True, path=poisoned_nemo)
    assert done.returncode == 0
    assert "Stage of a test." in done.stdout
    assert "vold.prompts_per_step (int) = 256" in done.stdout and "ours: it counts prompts" in done.stdout
    assert ("cluster.launch.account" in done.stdout) == everything


@pytest.mark.parametrize(
    ("local", "environment", "told"),
    [
        ("0", {"NCCL_SOCKET_IFNAME": "=nothing0"}, ["(cluster.launch.interface) = '=nothing0: no interface nothing0'", "lo ("]),
        ("1", {"NCCL_SOCKET_IFNAME": "=nothing0"}, []),  # the first rank of the node has said it
        ("0", {"MASTER_ADDR": "no-such-host.invalid"}, ["MASTER_ADDR = 'no-such-host.invalid'", "getent hosts"]),
    ],
)
def test_a_rank_whose_node_cannot_reach_the_others_leaves_with_2_before_torch_is_imported(
    call, poisoned_nemo, local, environment, told
):
    rank = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": local, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = call("experiment=miniature", training=True, path=poisoned_nemo, SLURMD_NODENAME="n9", **{**rank, **environment})
    assert done.returncode == CONFIGURATION_ERROR and done.stdout == ""
    assert all(part in done.stderr for part in ["on n9: ", "mend:", *told] if told), done.stderr
    assert bool(done.stderr) == bool(told)


def test_files_of_the_working_directory_are_used_and_those_that_replace_a_shipped_one_are_named(call):
    mine, tp2 = call.folder / "conf/experiment/mine.yaml", call.folder / "conf/parallel/tp2.yaml"
    for file, text in ((mine, "# @package _global_\ndefaults: [miniature, _self_]\nsft: {steps: 4}\n"), (tp2, "tensor: 4\n")):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    done = call("experiment=mine", "parallel=tp2")
    assert (done.returncode, done.stdout) == (0, "ran 4 70 False\n")
    assert done.stderr == f"note: read from {call.folder}/conf, not as shipped: parallel/tp2.yaml\n"
    tp2.unlink()
    assert call("experiment=mine", "parallel=tp2").stderr == ""


def test_a_training_recipe_runs_under_nemos_hydra_runner(call):
    done = call("experiment=miniature", "sft.steps=4", "seed=85", "evaluate.text.limit=3", training=True)
    assert done.returncode == STOPPED_BY_SIGNAL, done.stderr
    assert "ran 4 70 True" in done.stdout
    assert list(call.folder.iterdir()) == []


def test_every_recipe_explains_itself():
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    assert len(recipes) >= 7
    for script in recipes:
        text = script.read_text()
        # these take a folder and no configuration: they must also read runs whose configuration is long gone
        assert ("@recipe(" in text) != (script.name in ("watch.py", "show_rollouts.py")), script
        assert 'if __name__ == "__main__":' in text, script
        assert f"recipes/{script.name}" in text.split('"""')[1], f"{script}: the docstring shows how to start it"


@pytest.mark.parametrize("words", [["--help=all"], ["experiment=miniature", "dry_run=true"]], ids=" ".join)
def test_a_reader_that_leaves_early_sees_no_traceback(words):
    command = [sys.executable, str(ROOT / "recipes/plan.py"), *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert "BrokenPipe" not in said and "Traceback" not in said
