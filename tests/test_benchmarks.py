"""The benchmarks compare like with like, and end with the line that others read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bf16, groups, objective, peers, process, start, step, step_table, sync
from benchmarks.measure import parse
from vold_nemo.step import Step

SMALL = ["tokens=48", "chunk=16", "vocabulary=512", "hidden=16", "teacher_hidden=24", "threads=1", "json=true", "results="]


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(("estimator", "tensor"), [("jsd", 1), ("reverse", 2)])
def test_dense_and_ours_solve_the_same_problem(capsys, estimator, tensor):
    objective.main([*SMALL, "methods=dense,single_pass", f"estimator={estimator}", f"tensor={tensor}"])
    line = last_line(capsys)
    dense, ours = line["results"]
    assert ours["loss"] == pytest.approx(dense["loss"], rel=1e-5)
    assert ours["gradient_norm"] == pytest.approx(dense["gradient_norm"], rel=1e-5)
    assert line["peak_ratio_vs_dense"] > 0 and line["time_ratio_vs_dense"] > 0


def test_an_unknown_or_mistyped_setting_says_what_is_allowed():
    with pytest.raises(SystemExit, match="unknown key; allowed: tokens, vocabulary"):
        parse(["token=1"], objective.DEFAULTS)
    with pytest.raises(SystemExit, match="must be a int"):
        parse(["tokens=many"], objective.DEFAULTS)


def test_a_step_as_a_table_is_taken_up_and_worked_with_beside_its_lists(capsys):
    step_table.main(["rollouts=40", "tokens=100", "ranks=2", "repeats=1", "json=true", "results="])
    found = last_line(capsys)["results"]
    assert 0 < found["bytes_share"] < 1 and set(found["faster"]) == {"take up", "subtract"}


def test_operations_of_a_step_are_those_that_torch_counts_in_transformers():
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape, rows, length = step.shaped(layers=3, hidden=32), 64, 7
    config = Qwen2Config(
        vocab_size=rows, hidden_size=32, intermediate_size=shape.ffn, num_hidden_layers=3, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, attn_implementation="eager",
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model.lm_head(model.model(torch.zeros(1, length, dtype=torch.int64)).last_hidden_state[:, 3:])
    planned = Step.of([[5] * 3], [[6] * 4, [7] * 4], samples=2, engine=[[0.0] * 4] * 2)
    planned["trained"], planned["scored"] = [True, True], [True, False]
    # two are trained on, forward and backward, and one is scored: 2 x 3 + 1 passes
    assert step.flops(planned, shape, shape, rows) == 7 * counted.get_total_flops()


def test_a_benchmark_beside_trl_says_what_it_lacks_and_which_arms_there_are(tmp_path):
    with pytest.raises(SystemExit, match=r"nowhere does not exist: `make demo` makes it"):
        peers.main([f"student={tmp_path}/nowhere", "results="])
    with pytest.raises(SystemExit, match=r"arms=sft: unknown; allowed: grpo, distillation, trl_grpo, trl_distillation, vold"):
        peers.main(["arms=sft,grpo", "results="])


def test_seconds_of_a_step_are_shared_out_among_its_phases_and_what_its_children_did_counts():
    class Trainer:
        def step(self):
            self.generate()
            subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)

        def generate(self):
            sum(range(10**6))

    record, trainer = process.Record(), Trainer()
    record.watch(trainer, "generate", "generate")
    record.watch(trainer, "step", "train")
    for _ in range(2):
        trainer.step()
        record.step(tokens=1.0, reward=None)
    for one in record.steps:
        assert set(one["phases"]) == {"generate", "train", "rest"} and min(one["phases"].values()) >= 0
        assert sum(one["phases"].values()) == pytest.approx(one["seconds"])
        assert one["phases"]["train"] > 0.005  # the child, without what `generate` took
    assert 0 < record.imported <= process.resident("VmHWM")


def test_runs_in_two_precisions_are_compared_question_by_question():
    said = {("fp32", 1): "0011", ("bf16", 1): "0111", ("fp32", 2): "0000"}  # the other precision of seed 2 is not there yet
    runs = {key: {"answers": {"sft": {"text": answers, "image": "1" * 4}}} for key, answers in said.items()}
    text, image = bf16.accuracy_rows(["sft"], runs)[-2:]
    assert text.startswith("| sft | text | 50.0, 0.0 | 75.0 | +25.0 [+0.0, +75.0] | +25.0 | 35.4 |")
    assert "| 100.0, 100.0 | 100.0 | +0.0 [+0.0, +0.0] | +0.0 | 0.0 |" in image


@pytest.mark.long
def test_a_grpo_step_has_no_teacher_and_a_vold_step_has_one():
    root = Path(__file__).parents[1]
    arguments = ["prompts=4", "samples=4", "max_tokens=8", "repeats=1", "rates=0.5", "rows=64", "results=", "json=true"]
    said = subprocess.run(
        [sys.executable, "benchmarks/step.py", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=280
    )
    (run,) = json.loads(said.stdout.splitlines()[-1])["results"]
    assert run["arms"]["vold"]["teacher"] > 0 == run["arms"]["grpo"]["teacher"]
    assert run["arms"]["grpo_whole"]["trained_rollouts"] == 16 > run["arms"]["vold"]["trained_rollouts"]
    assert run["train_ratio"]["grpo"] > 0


@pytest.mark.long
def test_training_waits_for_the_copy_and_not_for_the_files():
    root = Path(__file__).parents[1]
    arguments = ["hidden=512", "layers=2", "rows=2048", "repeats=1", "tensor=2", "results=", "json=true"]
    said = subprocess.run(
        [sys.executable, "benchmarks/checkpoint.py", *arguments], cwd=root, capture_output=True, text=True, check=True,
        timeout=280,
    )  # fmt: skip
    line = json.loads(said.stdout.splitlines()[-1])
    parameters = 2 * 4 * 512 * 512  # a good part of the attention alone
    assert line["bytes"] > 3 * 4 * parameters  # fp32 weights and both moments
    assert 0 < line["waited_ratio_vs_at_once"] < 1


@pytest.mark.long
@pytest.mark.parametrize("layout", [["tensor=2"], ["pipeline=2"], ["experts=4", "expert=2"]], ids=" ".join)
def test_a_sync_is_measured_in_every_layout(capsys, layout):
    sync.main([*layout, "hidden=128", "layers=2", "rows=512", "repeats=1", "results=", "json=true"])
    line = last_line(capsys)
    assert line["bytes"] > 4 * 512 * 128 and line["parts"] == 4
    assert all(line[f"{way}_ratio_vs_{over}"] > 0 for way in ("stream", "sync", "proved") for over in ("copy", "link_and_copy"))


@pytest.mark.long
def test_the_bytes_of_a_start_are_those_that_ranks_need(capsys):
    start.main(["at_once=1", "worlds=2", "hidden=128", "layers=4", "rows=512", "results=", "json=true"])
    found = last_line(capsys)["results"]
    assert found["groups"][0]["world"] == 2 and found["check"]["processor"] > 0
    assert {row["what"] for row in found["imports"]} == set(start.IMPORTS)
    rows = {(row["tensor"], row["pipeline"]): row for row in found["reading"]}
    whole, half = rows[1, 1], rows[1, 2]
    weights = 0.99 * whole["bytes"]  # a file has a header besides
    assert weights < whole["read"]["asked"] <= whole["bytes"] and rows[2, 1]["read"]["asked"] < 0.6 * whole["bytes"]
    copied = [node["bytes"] for node in half["copied"]]
    assert len(copied) == 2 and max(copied) < 0.8 * whole["bytes"]  # both have the file of the ends


@pytest.mark.long
def test_a_rank_that_connects_late_holds_fewer_sockets_than_one_with_every_group_connected():
    measured = groups.measured(4)
    at_once, late = measured["all at once"]["groups"], measured["late, one group"]
    assert min(at_once) >= 3 * 3 and max(late["groups"]) <= 4 and max(late["talked"]) < min(at_once)
