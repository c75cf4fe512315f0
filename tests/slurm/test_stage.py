"""slurm/stage.sbatch on a real Slurm: who failed first, signals, restarts, a node that dies.  Recipes are a few lines here."""

import time

import pytest

TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", "--time=5")
STOPS_ONCE = """
def stop(number, frame):
    time.sleep(0.3 * int(os.environ["SLURM_PROCID"]))  # ranks do not leave at the same moment
    sys.exit(85)

signal.signal(signal.SIGUSR1, stop)
print("attempt", os.environ.get("SLURM_RESTART_COUNT", "0"), flush=True)
open(f"ready_{os.environ['SLURM_PROCID']}", "w").close()
if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    time.sleep(300)
"""


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_first_rank_that_failed_is_named_with_its_code_host_and_last_lines(slurm, repository, workplace):
    script = repository("stub", (
        'print("arguments", sys.argv[1:], flush=True)\n'
        'print("cores", os.environ["SRUN_CPUS_PER_TASK"], flush=True)\n'
        'open(f"ready_{os.environ[\'SLURM_PROCID\']}", "w").close()\n'
        'if os.environ["SLURM_PROCID"] == "2":\n'
        '    while not all(os.path.exists(f"ready_{rank}") for rank in range(4)):\n        time.sleep(0.1)\n'
        '    time.sleep(0.5)\n    print("the reason", flush=True)\n    sys.exit(7)\n'
        "time.sleep(300)\n"
    ))  # fmt: skip
    number = slurm.submit(*TWO_BY_TWO, "--cpus-per-task=2", str(script), "stub", "a key=a value", cwd=workplace)
    assert slurm.code(number) == 7
    said = (workplace / "job.out").read_text()
    assert "rank 2 on n2 failed first, with 7" in said and said.rstrip().endswith("the reason")
    logs = workplace / "logs" / number / "0"
    assert sorted(path.name for path in logs.glob("*.log")) == [f"rank_{rank}.log" for rank in range(4)]
    assert "['a key=a value']" in (logs / "rank_0.log").read_text()
    assert "cores 2" in (logs / "rank_0.log").read_text()  # srun by itself does not take the job's number over


def test_a_warning_stops_all_ranks_and_the_job_goes_on_in_a_second_attempt(slurm, repository, workplace):
    script = repository("sft", STOPS_ONCE)
    number = slurm.submit(*TWO_BY_TWO, str(script), "sft", cwd=workplace, VOLD_DONE="done", VOLD_KEYS="of this")
    until(lambda: len(list(workplace.glob("ready_*"))) == 4)
    slurm.call("scancel", "--batch", "--signal=USR1", number)
    record = slurm.wait(number)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1")
    assert "stopped with a checkpoint: back into the queue" in (workplace / "job.out").read_text()
    for attempt in ("0", "1"):
        assert f"attempt {attempt}" in (workplace / "logs" / number / attempt / "rank_3.log").read_text()
    assert (workplace / "done").read_text() == "of this\n"


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_time_limit_is_a_restart_and_not_an_end(slurm, repository, workplace):
    script = repository("vold", STOPS_ONCE)
    number = slurm.submit("--time=1", "--signal=B:USR1@50", "--ntasks=2", str(script), "vold", cwd=workplace)
    record = slurm.wait(number, 200)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_recipe_without_checkpoints_is_ended_by_a_warning_and_put_back(slurm, repository, workplace):
    script = repository("generate_traces", STOPS_ONCE.replace("signal.SIGUSR1, stop", "signal.SIGUSR1, signal.SIG_DFL"))
    number = slurm.submit("--ntasks=1", str(script), "generate_traces", cwd=workplace)
    until(lambda: (workplace / "ready_0").exists())
    slurm.call("scancel", "--batch", "--signal=USR1", number)
    record = slurm.wait(number)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1")
    assert "ended by USR1 between two pieces of work" in (workplace / "job.out").read_text()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_warning_to_one_task_of_an_array_leaves_the_others_alone(slurm, repository, workplace):
    """The last task bears the number of the array: what is done to that number is done to all."""
    script = repository("generate_traces", (
        'name = os.environ["SLURM_ARRAY_TASK_ID"]\nopen(f"ready_{name}", "w").close()\n'
        'first = os.environ.get("SLURM_RESTART_COUNT", "0") == "0"\n'
        'while first if name == "1" else not os.path.exists("go_on"):\n    time.sleep(0.1)\n'
    ))  # fmt: skip
    number = slurm.submit("--ntasks=1", "--array=0-1", str(script), "generate_traces", cwd=workplace)
    until(lambda: len(list(workplace.glob("ready_*"))) == 2)
    assert slurm.job(f"{number}_1")["JobId"] == number
    slurm.call("scancel", "--batch", "--signal=USR1", f"{number}_1")
    slurm.wait(f"{number}_1", until=lambda record: record["Restarts"] == "1")
    (workplace / "go_on").touch()
    records = [slurm.wait(f"{number}_{task}") for task in range(2)]
    assert [(record["JobState"], record["Restarts"]) for record in records] == [("COMPLETED", "0"), ("COMPLETED", "1")]


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("moves, code", [(False, 87), (True, 0)])
def test_restarts_without_progress_come_to_an_end(slurm, repository, workplace, moves, code):
    attempt = 'attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))\n'
    write = 'open("latest", "w").write(f"step_{attempt}")\n' if moves else 'open("latest", "w").write("step_1")\n'
    script = repository("sft", attempt + write + "sys.exit(85 if attempt < 3 else 0)\n")
    number = slurm.submit(
        "--ntasks=1", str(script), "sft", cwd=workplace, VOLD_PROGRESS="latest", VOLD_MAX_RESTARTS="0" if moves else "1"
    )
    assert slurm.code(number, 240) == code
    assert slurm.job(number)["Restarts"] == "3"  # the second finds a checkpoint that the first did not


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_node_that_dies_is_a_restart(slurm, repository, workplace):
    script = repository("sft", STOPS_ONCE)
    number = slurm.submit(*TWO_BY_TWO, str(script), "sft", cwd=workplace)
    until(lambda: len(list(workplace.glob("ready_*"))) == 4)
    slurm.control("kill", "n2")
    slurm.wait(number, 120, until=lambda record: record["JobState"] == "PENDING")
    slurm.revive("n2")
    record = slurm.wait(number, 120)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1")


@pytest.mark.long
def test_a_rank_that_somebody_ends_by_term_is_a_restart(slurm, repository, workplace):
    first = 'if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" and os.environ["SLURM_PROCID"] == "1":\n'
    script = repository("sft", f"{first}    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n")
    number = slurm.submit("--ntasks=2", str(script), "sft", cwd=workplace)
    record = slurm.wait(number)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1")
    assert "was ended by TERM from outside: back into the queue" in (workplace / "job.out").read_text()


@pytest.mark.long
def test_a_job_that_is_cancelled_stays_cancelled(slurm, repository, workplace):
    script = repository("sft", 'open(f"ready_{os.environ[\'SLURM_PROCID\']}", "w").close()\ntime.sleep(300)\n')
    number = slurm.submit("--ntasks=2", str(script), "sft", cwd=workplace)
    until(lambda: len(list(workplace.glob("ready_*"))) == 2)
    slurm.call("scancel", number)
    slurm.wait(number)
    time.sleep(5)  # the batch script has KillWait to do wrong
    record = slurm.job(number)
    assert (record["JobState"], record.get("Restarts")) == ("CANCELLED", "0")
    assert "back into the queue" not in (workplace / "job.out").read_text()


@pytest.mark.long
def test_a_rank_killed_outright_is_told_from_one_that_failed(slurm, repository, workplace):
    program = 'if os.environ["SLURM_PROCID"] == "1":\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(300)\n'
    script = repository("stub", program)
    number = slurm.submit(*TWO_BY_TWO, str(script), "stub", cwd=workplace)
    assert slurm.code(number) == 137
    assert "rank 1 on n1 failed first, with 137" in (workplace / "job.out").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        ([], {}, "no recipe: sbatch"),
        (["sfft"], {}, "no recipe sfft: one of stub.py"),
        (["stub"], {"VOLD_SETUP": "false"}, "VOLD_SETUP failed"),
        (["stub"], {"VOLD_RUNTIME": "docker"}, "VOLD_RUNTIME = docker: bare | pyxis | apptainer"),
        (["stub"], {"VOLD_ROOT": "/"}, "VOLD_ROOT = / is not this repository"),
    ],
)
def test_a_mistake_in_the_settings_costs_seconds(slurm, repository, workplace, arguments, environment, message):
    number = slurm.submit("--ntasks=1", str(repository("stub", "")), *arguments, cwd=workplace, **environment)
    assert slurm.code(number) == 2
    assert message in (workplace / "job.out").read_text()
