"""What a verb declares to read is what its code reaches, and the declaration can be asked for without the code."""

import dataclasses
import subprocess
import sys

import pytest

from tests.config.readings import reached
from vold_nemo.config import Config
from vold_nemo.config.places import recipes
from vold_nemo.config.reads import EVERYWHERE, reads_of

VERBS = sorted(file.stem for file in recipes().glob("*.py"))
BARE = {"watch", "show_rollouts"}  # these take a run folder and no configuration
# Reached by name, and not read: who would read it is never called.
NOT_READ = {
    "teacher_drift": {
        "reward": "MegatronVOLDModel names the Sampler; given traces are scored, nothing is sampled",
        "checkpoint": "MegatronStudent.fit is not called: nothing is trained",
        "profile": "nor is a step of training looked into",
    },
    "rehearse": {
        "reward": "PlannedSampler is a Sampler, and judges at plan.reward_rate",
        "data": "traces and prompts are made of plan.*: rehearsal/inputs.py",
        "traces": "the planner is asked for the other stages alone",
        "profile": "rehearsal/run.py takes it out: a profiler would see fake tensors",
        "logging": "rehearsal/inputs.py takes the place of models/inputs.py, whose run is logged",
    },
}
BY_THE_COMMAND_LINE = {"plan": {"strict"}, "doctor": {"rollout"}}  # the latter: config/environment.py


@pytest.mark.parametrize("verb", sorted(set(VERBS) - BARE))
def test_a_verb_declares_what_it_reads(verb):
    declared, found = reads_of(verb), reached(verb)
    assert set(declared) <= {field.name for field in dataclasses.fields(Config)} and len(set(declared)) == len(declared)
    assert set(NOT_READ.get(verb, ())) <= set(found), "an exception that is none any more"
    expected = set(found) - set(NOT_READ.get(verb, ())) | BY_THE_COMMAND_LINE.get(verb, set())
    besides = {*EVERYWHERE, "dry_run"}
    missing = {key: sorted(found.get(key, ()))[:3] for key in expected - set(declared) - besides}
    assert not missing, f"recipes/{verb}.py reads these and does not say so"
    assert not set(declared) - expected - besides, f"recipes/{verb}.py says that it reads these"


@pytest.mark.parametrize("verb", sorted(BARE))
def test_a_verb_without_a_configuration_reads_nothing(verb):
    assert reads_of(verb) == () and not reached(verb)


def test_a_verb_that_does_not_exist_is_no_verb_that_reads_nothing():
    with pytest.raises(FileNotFoundError):
        reads_of("tarin")


def test_asking_imports_nothing_heavy():
    code = "import sys; from vold_nemo.config.reads import reads_of; print(reads_of('vold')[0], 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "vold False\n"
