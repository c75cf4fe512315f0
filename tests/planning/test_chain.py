"""What a chain decides from its keys, its records and the queue; no Slurm."""

import copy
import dataclasses
import functools

import pytest

from tests.config.readings import reached_keys
from vold_nemo.config.compose import compose
from vold_nemo.config.sections.cluster import CHAIN
from vold_nemo.config.tree import spec_of, value_at
from vold_nemo.planning.chain import HOW, NARROW, Record, decide
from vold_nemo.planning.launch import stages, wishes
from vold_nemo.planning.site import minutes
from vold_nemo.planning.validity import findings

BASE = ["experiment=miniature", "cluster=my_site"]
# Read by name, where it decides nothing: a method of the section, or what only asks for the teacher's tokens.
BESIDES = {"objective": "objective.tokens_at_once() reads chunk_tokens, agree() reads kl.enabled"}


@functools.cache
def base():
    return compose(BASE)


def configured(**changed):
    """The chain's configuration with ``section__key=value``; composing it anew for each would take long."""
    config = copy.deepcopy(base())
    for name, value in changed.items():
        section, _, key = name.replace("__", ".").rpartition(".")
        owner = value_at(config, section) if section else config
        assert hasattr(owner, key) and getattr(owner, key) != value, name
        setattr(owner, key, value)
    return config


def asked(here, **changed):
    return wishes(configured(**changed), BASE, here)


def submitted(here, **changed) -> dict[str, Record]:
    return {
        wish.stage.name: Record(str(number), wish.stage.array, wish.reads, wish.how, wish.launch)
        for number, wish in enumerate(asked(here, **changed), 1)
    }


def actions(here, *, states=None, done=CHAIN, **changed) -> dict[str, str]:
    """After a chain whose stages ``done`` have succeeded: name -> action once keys have ``changed``."""
    records, now = submitted(here), asked(here, **changed)
    still = [w.stage.name for w in now if w.stage.name in done and w.reads == records[w.stage.name].reads]
    return {d.wish.stage.name: d.action for d in decide(now, CHAIN, records, states or {}, still)}


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ({"evaluate__max_tokens": 7}, "evaluate"),
        ({"report__examples": 1}, "report"),
        ({"objective__kl__beta__value": 0.25}, "vold"),
        ({"data__mixture": {"a": 1.0}}, "vold"),
        ({"rollout__temperature": 0.9}, "vold"),
        ({"sft__steps": 3}, "sft"),
        ({"data__trace_mixture": {"a": 1.0}}, "sft"),
        ({"traces__temperature": 0.5}, "traces"),
        ({"teacher__thinking": True}, "traces"),
        ({"seed": 9}, "traces"),
        ({"cluster__launch__time": "7"}, None),
        ({"cluster__launch__partition": "other"}, None),
        ({"cluster__gpus__vold": 2}, None),
        ({"limits__wall_minutes": 30.0}, None),
        ({"checkpoint__every": 3}, None),
        ({"logging__tensorboard": False}, None),
        ({"traces__shards": 2}, None),
        ({"miniature__test_questions": 3}, None),  # nobody in the chain reads it
    ],
)
def test_a_stage_is_done_again_only_if_a_key_that_it_reads_has_changed_or_one_before_it(tmp_path, changed, first):
    found = actions(tmp_path, **changed)
    expected = CHAIN[CHAIN.index(first) :] if first else ()
    assert [name for name, action in found.items() if action == "submit"] == list(expected)
    assert set(found.values()) <= {"done", "submit"}


@pytest.mark.parametrize("recipe, section", NARROW)
def test_what_is_left_out_of_a_section_its_recipe_does_not_read(recipe, section):
    """``reached_keys`` follows names in the source."""
    if section == "parallel":  # read, and without a say in what is exported: tests/checkpoint/test_export.py
        return
    kept = (*NARROW[recipe, section], *HOW)
    read = {key for key in reached_keys(recipe) if key.partition(".")[0] == section} - set(BESIDES)
    assert read, "this recipe reads nothing of it: take the section out of its declaration"
    assert not [key for key in read if not any(key == one or key.startswith(f"{one}.") for one in kept)]


def test_a_running_job_is_left_alone_unless_a_key_it_reads_has_changed(tmp_path):
    running = {"2": "RUNNING", "3": "PENDING"}  # sft, export_sft
    undone = ("traces",)
    kept = actions(tmp_path, evaluate__max_tokens=7, states=running, done=undone)
    assert (kept["sft"], kept["export_sft"], kept["vold"]) == ("kept", "kept", "submit")
    late = actions(tmp_path, cluster__launch__time="7", states=running, done=undone)
    assert (late["sft"], late["export_sft"]) == ("kept", "submit")  # what has not begun can still be submitted otherwise
    records, now = submitted(tmp_path), asked(tmp_path, sft__steps=3)
    decided = {d.wish.stage.name: d for d in decide(now, CHAIN, records, running, ["traces"])}
    assert decided["sft"].cancels == "2" and decided["sft"].after_end == ("2",) and "sft.steps" in decided["sft"].why
    assert decided["export_sft"].cancels == "3" and decided["export_sft"].after_stage == "sft"


@pytest.mark.parametrize(
    "state, action, after_end", [("PENDING", "kept", ()), ("SUSPENDED", "kept", ()), ("ENDING", "submit", ("2",)),
                                 (None, "submit", ())]
)  # fmt: skip
def test_a_requeued_job_is_queued_and_one_that_dies_is_waited_for(tmp_path, state, action, after_end):
    states = {} if state is None else {"2": state}
    decided = {d.wish.stage.name: d for d in decide(asked(tmp_path), CHAIN, submitted(tmp_path), states, ["traces"])}
    assert (decided["sft"].action, decided["sft"].after_end, decided["sft"].cancels) == (action, after_end, None)


def test_a_job_waits_for_all_of_its_folder_that_have_not_ended(tmp_path):
    records = submitted(tmp_path)
    records["sft"] = dataclasses.replace(records["sft"], after=["90", "91"])
    states = {"2": "PENDING", "90": "ENDING"}
    decided = {d.wish.stage.name: d for d in decide(asked(tmp_path, sft__steps=3), ["sft"], records, states, ["traces"])}
    assert decided["sft"].after_end == ("2", "90")


def test_a_stage_that_is_not_asked_for_is_waited_for_while_it_runs(tmp_path):
    decided = list(decide(asked(tmp_path), ["vold"], submitted(tmp_path), {"3": "RUNNING"}, []))
    assert [(d.wish.stage.name, d.after_stage) for d in decided] == [("vold", "export_sft")]


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"cluster__launch__signal_seconds": 30}, "cluster.launch.signal_seconds"),
        ({"cluster__launch__signal_seconds": 119}, "cluster.launch.signal_seconds"),
        ({"cluster__launch__signal_seconds": 70_000, "cluster__launch__time": "7-0"}, "cluster.launch.signal_seconds"),
        ({"cluster__launch__time": "10:00"}, "cluster.launch.signal_seconds"),  # the warning comes 600 s before the end
        ({"cluster__launch__partition": "a\nrm b"}, "cluster.launch.partition"),
        ({"cluster__launch__qos": "a\rb"}, "cluster.launch.qos"),
        ({"cluster__launch__account": 'a"b'}, "cluster.launch.account"),
        ({"cluster__launch__options": ["--x\ntouch y"]}, "cluster.launch.options"),
        ({"cluster__launch__options": ["exclusive"]}, "cluster.launch.options"),
        ({"cluster__launch__environment": {"A B": "c"}}, "cluster.launch.environment.A B"),
        ({"chain__stages": ["vodl"]}, "chain.stages"),
    ],
)  # fmt: skip
def test_what_would_make_another_script_or_no_warning_is_refused(changed, key):
    assert [error.key for error in findings(configured(**changed), "chain")] == [key]


def test_times_are_read_as_sbatch_reads_them():
    said = {"30": 30, "30:30": 30.5, "1:30:00": 90, "2-0": 2880, "1-2:30": 1590, "0": 0, "UNLIMITED": None, "a:b": None}
    assert {text: minutes(text) for text in said} == said


def test_the_names_of_the_stages_are_the_chains():
    assert tuple(stage.name for stage in stages(base())) == CHAIN == spec_of("plan.stage").choices
