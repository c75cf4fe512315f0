"""The plan of an experiment: what it says, what it refuses, and that it needs neither torch nor checkpoints."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.megatron import tiny
from vold_nemo.config import ConfigError
from vold_nemo.config.compose import compose
from vold_nemo.config.launcher import CONFIGURATION_ERROR
from vold_nemo.config.places import conf, root
from vold_nemo.megatron import architecture
from vold_nemo.megatron.architecture import read as architecture_of
from vold_nemo.planning import allocation, host, memory, rates, text, timing
from vold_nemo.planning.memory import GIB
from vold_nemo.planning.plan import STAGES, layout_findings, make_plan, models_of, places, plan_stage, stage_gpus
from vold_nemo.planning.published import vision_parameters
from vold_nemo.planning.search import assign, cheapest_changes
from vold_nemo.planning.tokens import contract
from vold_nemo.planning.validity import Pending, Unbuilt, findings, pending

# Parameter counts that the models' hub pages print.
HUB = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976, "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336, "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen3-4B": 4_022_468_096, "Qwen/Qwen3-8B": 8_190_735_360, "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264, "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
}  # fmt: skip
EXPERIMENTS = sorted(file.stem for file in (conf() / "experiment").glob("*.yaml") if not file.stem.startswith("miniature"))


@pytest.mark.parametrize("name", HUB)
def test_published_shapes_add_up_to_the_published_parameter_counts(name):
    arch = architecture_of(name)
    assert allocation.parameter_count(arch) + vision_parameters(name) == HUB[name]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_valid_and_fits(experiment):
    config = compose([f"experiment={experiment}"])
    errors = findings(config, "plan")
    assert [error for error in errors if not isinstance(error, Pending)] == []
    assert {error.key for error in errors if isinstance(error, Unbuilt)} == set()
    models = models_of(config)
    for stage in STAGES:
        assert layout_findings(config, models, stage, stage_gpus(config, stage)) == []
    plan = make_plan(config, models)
    assert plan.fits, "\n".join(text.memory_table(plan))
    assert plan.gpu_hours > 0
    fp8 = config.cluster.compute_capability >= 8.9  # bf16 on A100s
    assert memory.teacher_precision(config, config.teacher, models.teacher).weights == ("fp8" if fp8 else "bf16")


def test_a_run_refuses_what_a_plan_only_warns_of():
    config = compose(["experiment=qwen2_5_vl_72b_from_235b", "dry_run=true"])
    keys = {error.key for error in findings(config, "vold", 128)}
    assert keys >= {"student.path", "teacher.path"}


@pytest.fixture
def paper():
    return compose(["experiment=paper_3b"])


def test_stages_add_up_to_the_model(paper):
    models = models_of(compose(["experiment=qwen2_5_vl_7b_from_32b_h100"]))
    for arch in (models.student, models.teacher):
        padded = architecture.padded_vocabulary(models.padded_rows, 4)
        split = sum(
            allocation.frozen(arch, allocation.Placement(4, 2, 1, stage), padded, "bf16").elements for stage in (0, 1)
        )
        norms = sum(size for name, size in allocation.layer_parameters(arch, 4) if "norm" in name)
        padding = 2 * (padded - arch.vocabulary) * arch.hidden
        assert 4 * split - 3 * (norms * arch.layers + arch.hidden) == allocation.parameter_count(arch) + padding


def test_the_teacher_is_charged_for_only_where_a_kl_needs_one(paper):
    grpo = compose(["experiment=paper_3b", "objective=grpo"])
    with_teacher, without = (make_plan(c, models_of(c)).stages[2] for c in (paper, grpo))
    assert "teacher" in with_teacher.peak.parts and "teacher" in with_teacher.time.seconds
    assert "teacher" not in without.peak.parts and "teacher" not in without.time.seconds


def test_what_leaves_the_device_is_charged_to_the_phases_that_need_it(paper):
    asked = ["vold.offload.gradients=true", "vold.offload.optimizer=true", "rollout.sleep=true"]
    config = compose(["experiment=paper_3b", *asked])
    kept, moved = (
        {phase.name: phase.parts for phase in memory.phases(c, models_of(c), "vold", 4)} for c in (paper, config)
    )
    for phase, gone in {
        "generate": {"gradients", "optimizer"}, "teacher": {"gradients", "optimizer", "engine"}, "train": {"engine"},
        "sync": {"gradients", "optimizer"},
    }.items():  # fmt: skip
        assert moved[phase] == {name: size for name, size in kept[phase].items() if name not in gone}
        assert gone <= set(kept[phase])


def test_a_checkpoint_that_a_thread_writes_takes_host_memory_and_a_distributed_optimizer_shares_it_out(paper):
    (said,) = [line for line in text.host_table(paper, models_of(paper)) if "vold" in line]
    models = models_of(paper)
    plain = compose(["experiment=paper_3b", "vold.optimizer.distributed=false"])
    own, whole = (host.fullest(config, models, "vold", 4)["checkpoint"] for config in (paper, plain))
    assert f"(checkpoint {own / memory.GIB:.2f})" in said and f"{4 * own / memory.GIB:.0f} GiB on a node of 4" in said
    assert own == pytest.approx(whole, rel=0.01)  # a half of it either way: each of two data ranks its share
    alone = host.fullest(plain, models, "vold", 2)["checkpoint"]
    assert own == pytest.approx(alone / 2, rel=0.01)
    waits = compose(["experiment=paper_3b", "checkpoint.asynchronous=false"])
    assert not list(text.host_table(waits, models_of(waits)))


def test_what_leaves_the_device_for_host_memory_is_counted_there(paper):
    asked = ["vold.offload.optimizer=true", "teacher.offload=true", "rollout=vllm", "rollout.sleep=true"]
    config = compose(["experiment=paper_3b", *asked])
    models = models_of(config)
    found = host.fullest(config, models, "vold", 4)
    train = {phase.name: phase.parts for phase in memory.phases(paper, models, "vold", 4)}["train"]
    assert found == {
        "checkpoint": host.fullest(paper, models, "vold", 4)["checkpoint"], "optimizer": train["optimizer"],
        "teacher": train["teacher"], "engine": memory.engine_weights(config, models),
    }  # fmt: skip
    read_again = compose(["experiment=paper_3b", *asked, "teacher.offload_to=checkpoint"])
    assert "teacher" not in host.fullest(read_again, models, "vold", 4)


def test_the_mask_saves_more_the_more_rollouts_are_right(paper):
    rows = timing.mask_saving(paper, models_of(paper), 4)
    saved = [whole - step for _, step, whole in rows]
    assert saved[0] == pytest.approx(0) and saved == sorted(saved)
    assert timing.shares(paper, 0.5) == (0.5, 1 - 0.5**5)
    assert timing.shares(compose(["experiment=paper_3b", "objective=grpo"]), 0.5) == (0.0, 1 - 2 * 0.5**5)
    assert timing.shares(compose(["experiment=paper_3b", "objective.skip=false"]), 0.5) == (1.0, 1.0)


def test_several_teachers_are_charged_by_the_widest_and_timed_by_the_costliest(paper):
    more = compose([
        "experiment=paper_3b", "+teachers={large: {path: Qwen/Qwen3-14B, offload: true}}",
        "data.prompts.fields.teacher=teacher",
    ])  # fmt: skip
    one, two = (
        {phase.name: phase.parts for phase in memory.phases(c, models_of(c), "vold", 4)} for c in (paper, more)
    )
    assert two["train"]["hidden states"] / one["train"]["hidden states"] == pytest.approx(5120 / 4096)
    assert two["teacher"]["teacher"] > 2 * one["teacher"]["teacher"]
    assert one["generate"]["teacher"] == two["generate"]["teacher"] < two["train"]["teacher"]
    large = compose(["experiment=paper_3b", "teacher.path=Qwen/Qwen3-14B"])
    took = [plan_stage(c, models_of(c), "vold", 4).time.seconds for c in (large, more)]
    assert took[0]["teacher"] == took[1]["teacher"] and "offload" in took[1] and "offload" not in took[0]
    assert "large layers 0-39" in places(more, models_of(more), 4)[0]


def test_experts_are_divided_over_their_ranks_and_talk_for_it():
    def of(expert):
        config = compose(["experiment=qwen2_5_vl_72b_from_235b", f"parallel.expert={expert}"])
        models = models_of(config)
        last = [phase for phase in memory.phases(config, models, "vold", 128) if phase.name == "teacher"][-1]
        return last.parts["teacher"], timing.duration(config, models, "vold", 128).seconds["teacher"]

    (few, quick), (many, slow) = of(8), of(64)
    assert 3 < few / many < 8 and slow > quick  # attention and embeddings stay


def test_an_engine_of_vllms_takes_its_share_and_refuses_what_does_not_fit_into_it(paper):
    def traces(*overrides):
        config = compose(["experiment=paper_3b", "traces.engine=vllm", *overrides])
        return plan_stage(config, models_of(config), "traces", 8)

    share = 0.9 * 79.1 * GIB
    alone, pair = traces(), traces("traces.tensor_parallel=2")
    for plan in (alone, pair):
        assert plan.peak.total == pytest.approx(share) and plan.fits
    assert alone.peak.parts["engine"] == pytest.approx(2 * pair.peak.parts["engine"], abs=2)
    assert not traces("teacher.path=Qwen/Qwen3-32B", "traces.memory_share=0.8").fits  # 61 GiB of weights in 63
    transformers = plan_stage(paper, models_of(paper), "traces", 8).time.total
    assert alone.time.total < transformers / 2  # neither launches nor waits for the longest of a batch


def test_vllms_cache_stands_beside_the_trainer_unless_the_engine_sleeps(paper):
    def parts(*overrides):
        config = compose(["experiment=paper_3b", "rollout.engine=vllm", "rollout.vllm.memory_share=0.25", *overrides])
        assert layout_findings(config, models_of(config), "vold", 4) == []
        return {phase.name: phase.parts for phase in memory.phases(config, models_of(config), "vold", 4)}

    stands, sleeps = parts(), parts("rollout.sleep=true")
    for phase in ("generate", "teacher", "train", "sync"):
        assert stands[phase]["engine"] + stands[phase]["cache"] == pytest.approx(0.25 * 79.1 * GIB, abs=2)
    assert {phase for phase, held in sleeps.items() if "cache" in held} == {"engine", "generate"}
    assert set(sleeps["engine"]) == set(stands["engine"]) == {"engine", "cache", "reserve"}  # it comes first
    assert "engine" in sleeps["sync"] and not {"engine", "cache"} & set(sleeps["train"])
    small = compose(["experiment=paper_3b", "rollout.engine=vllm", "rollout.vllm.memory_share=0.1"])
    assert {e.key for e in layout_findings(small, models_of(small), "vold", 4)} == {"rollout.vllm.memory_share"}


def test_an_fp8_teachers_linear_layers_run_at_the_fp8_rate():
    config = compose(["experiment=qwen2_5_vl_7b_from_32b_h100", "parallel=single", "cluster.gpus.vold=8"])
    arch, tokens = models_of(config).teacher, timing.rollout_tokens(config)

    def seconds(*overrides):
        config = compose(["experiment=qwen2_5_vl_7b_from_32b_h100", "parallel=single", "cluster.gpus.vold=8", *overrides])
        return timing.duration(config, models_of(config), "vold", 8).seconds["teacher"]

    fp8, bf16, unknown = seconds(), seconds("teacher.precision=bf16"), seconds("cluster.fp8_tflops=null")
    emulated = seconds("teacher.precision=fp8", "teacher.fp8.backend=emulated")
    assert unknown == bf16 == emulated  # no such rate, no such layers, no such matrix units
    scored, _ = timing.shares(config, config.plan.reward_rate)
    linear = 2 * scored * tokens * (allocation.parameter_count(arch) - 2 * arch.vocabulary * arch.hidden)
    saved = linear * (1 / 989e12 - 1 / 1979e12) / (8 * config.plan.forward_efficiency)
    assert bf16 - fp8 == pytest.approx(saved, rel=1e-3) and 0.5 < fp8 / bf16 < 0.7


def test_a_rehearsals_counts_take_the_place_of_formulas(paper):
    models = models_of(paper)
    planned = timing.duration(paper, models, "vold", 8)
    train = {"train": {"work": 20.0, "links": 2.0}}
    phases = train | {"teacher": {"work": 5.0, "links": 1.0}, "probe": {"work": 9.0, "links": 9.0}}
    one = {"stage": "vold", "world": 8, "violations": [], "micro_batches": {"planned": 100}, "seconds": phases}
    slower = one | {"seconds": {"teacher": {"work": 7.0, "links": 1.0}}}
    strange = [one | {"world": 16}, one | {"stage": "sft"}, one | {"violations": ["it did not fit"]}]
    assert timing.counted(planned, paper, models, strange) == planned
    found = timing.counted(planned, paper, models, [one, slower])
    assert found.seconds == planned.seconds | {"teacher": 8.0, "train": 22.0} and set(found.rehearsed) == {"teacher", "train"}
    twice = assign(paper, "vold.updates_per_step", 2)
    assert "train" not in timing.counted(planned, twice, models, [one]).rehearsed
    piped = assign(paper, "parallel.pipeline", 2)
    assert timing.counted(planned, piped, models, [one]).seconds["train"] == pytest.approx(22.0 * 1.01)
    stage1 = timing.duration(paper, models, "sft", 8)
    of_sft = one | {"stage": "sft", "seconds": train}
    assert timing.counted(stage1, paper, models, [of_sft]).seconds == {"train": 22.0}


def test_estimators_that_sum_over_the_vocabulary_take_a_temporary_more(paper):
    def loss(estimator):
        config = assign(assign(paper, "objective.kl.estimator", estimator), "objective.chunk_tokens", 512)
        plan = plan_stage(config, models_of(config), "vold", 4)  # of 2,048 tokens the gradient's copy in bf16 is the larger
        return next(phase.parts["objective"] for phase in plan.phases if phase.name == "train")

    assert loss("k2") == loss("k3") < loss("reverse") == loss("vopd")


def test_recomputation_and_context_parallelism_buy_memory_with_time(paper):
    def work(**changes):
        config = assign(paper, "cluster.gpus.sft", 8)
        for key, value in changes.items():
            config = assign(config, f"parallel.{key}", value)
        plan = plan_stage(config, models_of(config), "sft", 8)
        train = next(phase for phase in plan.phases if phase.name == "train")
        return train.parts["activations"], train.total, plan.time.seconds["compute"]

    kept, peaks, seconds = zip(*(work(recompute=how) for how in ("none", "selective", "full")), strict=True)
    assert kept[0] > 2 * kept[1] > 10 * kept[2] and peaks[0] > peaks[1] > peaks[2]
    assert seconds[0] < seconds[1] < seconds[2] < 1.34 * seconds[0]
    assert work(context=2)[0] == pytest.approx(kept[0] / 2, rel=0.01)


def test_every_rank_holds_something_and_every_layer_is_held(paper):
    config = compose(["experiment=qwen2_5_vl_7b_from_32b_h100"])
    first, second = places(config, models_of(config), 64)
    assert first.startswith("ranks 0-31: 1/4 of student layers 0-13, teacher layers 0-31, embeddings; 8 copies")
    assert second.startswith("ranks 32-63: 1/4 of student layers 14-27, teacher layers 32-63") and "LM heads" in second


def test_a_plan_that_does_not_fit_names_three_changes_that_do(paper):
    tight = assign(assign(paper, "parallel.sequence", False), "vold.micro_batch_tokens", 32768)
    models = models_of(tight)
    plan = make_plan(tight, models)
    assert not plan.fits
    offers = cheapest_changes(tight, models)
    assert len(offers) == 3
    for names, changed in offers:
        assert changed.fits and 1 <= len(names) <= 3
        given = dict(name.split("=") for name in ("parallel.sequence=false", "vold.micro_batch_tokens=32768", *names))
        again = compose(["experiment=paper_3b", *(f"{key}={value}" for key, value in given.items())])
        assert make_plan(again, models).fits
    error = text.refusal(tight, models, plan)
    assert error.key == "memory of vold train" and offers[0][0][0] in error.mend


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from vold_nemo.miniature.random_models import write_random_student, write_random_teacher

    folder = tmp_path_factory.mktemp("plan")
    write_random_student(folder / "base")
    write_random_teacher(folder / "teacher")
    return folder


def test_the_contract_is_the_one_that_runs_check(world):
    from transformers import AutoTokenizer

    from vold_nemo.data.vocabulary import VocabularyContract

    config = compose(["experiment=miniature", f"miniature.path={world}"])
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (config.student.path, config.teacher.path)]
    rows = [architecture.read(path).vocabulary for path in (config.student.path, config.teacher.path)]
    said = VocabularyContract.from_tokenizers(tokenizers[0], rows[0], tokenizers[1], rows[1], padded=max(rows))
    (line,) = contract(config)
    assert f"share {int(said.shared.sum())} ids" in line
    assert f"{len(said.student_only)} only the student has, {len(said.teacher_only)} only the teacher has" in line


def test_an_id_that_means_two_tokens_is_refused(world, tmp_path):
    file = json.loads((world / "teacher" / "tokenizer.json").read_text())
    file["added_tokens"][0]["content"] = "<else>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    config = compose(["experiment=miniature", f"miniature.path={world}", f"teacher.path={tmp_path}"])
    with pytest.raises(ConfigError) as caught:
        contract(config)
    assert caught.value.key == "teacher.path" and "<else>" in caught.value.value


def test_the_command_answers_without_torch_and_leaves_2_where_it_does_not_fit(tmp_path):
    program = (
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print('HEAVY', sorted({'torch', 'nemo', 'megatron', 'transformers'} & set(sys.modules))))\n"
        "sys.argv = ['recipes/plan.py', *sys.argv[1:]]\n"
        "runpy.run_path('recipes/plan.py', run_name='__main__')\n"
    )

    def run(*overrides):
        command = [sys.executable, "-c", program, "experiment=paper_3b", f"outputs={tmp_path}", *overrides]
        return subprocess.run(command, capture_output=True, text=True, cwd=root(), env={**os.environ, "PYTHONPATH": "."})

    before = os.times().children_user
    good = run("explain=true", f"sbatch={tmp_path / 'out.sbatch'}")
    assert good.returncode == 0, good.stderr
    assert os.times().children_user - before < 3
    script = (tmp_path / "out.sbatch").read_text()
    assert "#SBATCH --ntasks=4\n" in script and "stage.sbatch\" vold" in script
    assert "experiment=paper_3b" in script
    for formula in ("all-to-alls", "as many sequences decode", "while it validates"):
        assert formula in good.stdout
    assert "HEAVY []" in good.stdout
    assert "vold: host memory 10.06 GiB on the fullest rank (checkpoint 10.06)" in good.stdout
    assert not re.search(r"\de\+\d", good.stdout.split("time (planned")[1].split("who holds what")[0])
    assert re.search(r"in all [1-9],\d{3} GPU hours", good.stdout) and "plan.straggler = 2.0" in good.stdout
    assert "warning: student.path" in good.stderr
    data = json.loads((tmp_path / "paper_3b" / "plan" / "plan.json").read_text())
    assert data["fits"] and not data["measured"]
    page = (tmp_path / "paper_3b" / "plan" / "plan.html").read_text()
    assert "optimizer" in page and "Planned, not measured" in page
    bad = run("vold.micro_batch_tokens=65536")
    assert bad.returncode == CONFIGURATION_ERROR and "micro_batch_tokens=" in bad.stderr.split("mend:")[-1]
    assert run("strict=true").returncode == CONFIGURATION_ERROR
    searched = run("search=true", "vold.micro_batch_tokens=65536", f"sbatch={tmp_path / 'none.sbatch'}")
    assert searched.returncode == CONFIGURATION_ERROR
    assert "fewest: 2 GPU(s)" in searched.stdout and "teacher.offload=true" in searched.stdout
    assert os.times().children_user - before < 60 and not (tmp_path / "none.sbatch").exists()
    assert run("parallel.tensor=3").returncode == CONFIGURATION_ERROR


@pytest.mark.parametrize("name", ["a100_80", "h100", "h200", "b200"])
def test_the_shipped_clusters_have_all_rates(name):
    config = compose(["experiment=paper_3b", f"cluster={name}"])
    cluster = config.cluster
    assert not rates.missing(config) and cluster.name == name and make_plan(config, models_of(config)).gpu_hours > 0
    assert (cluster.fp8_tflops is not None) == (cluster.compute_capability >= 8.9)  # bf16 is all that an A100 has
    assert cluster.fp8_tflops is None or cluster.fp8_tflops == pytest.approx(2 * cluster.bf16_tflops, rel=1e-3)  # both dense


def test_a_cluster_without_rates_gets_memory_and_no_verdict():
    config = compose(["experiment=paper_3b", "cluster=local"])
    plan = make_plan(config, models_of(config))
    assert plan.fits and plan.gpu_hours is None
    assert any("unknown" in line for line in text.time_table(plan, config))
    assert not memory.on_cuda(config) and plan.stages[2].peak.total > GIB


def test_data_that_is_not_fetched_is_a_warning(tmp_path):
    keys = {error.key for error in pending(compose(["experiment=paper_3b", f"data.prompts.path={tmp_path}"]))}
    assert "data.trace_prompts.path" in keys and "data.prompts.path" not in keys


def test_a_student_with_experts_is_not_planned(tmp_path):
    tiny.save("qwen3_moe", tmp_path, tied=False)
    with pytest.raises(ConfigError, match="dense"):
        models_of(compose(["experiment=miniature", f"student.path={tmp_path}", f"teacher.path={tmp_path}"]))


def _kinds(experiments) -> set[str]:
    """Every distinct (model, tensor, pipeline, expert, stage) of the experiments' layouts."""
    found = set()
    for experiment in experiments:
        config = compose([f"experiment={experiment}"])
        parallel = config.parallel
        for path in (config.student.path, config.teacher.path):
            name = path.rpartition("/")[2]
            expert = parallel.expert if architecture_of(path).experts else 1
            # middle stages have neither embedding nor head and are all alike
            for stage in {0, min(1, parallel.pipeline - 1), parallel.pipeline - 1}:
                found.add(f"{name}:{parallel.tensor}:{parallel.pipeline}:{expert}:{stage}")
    return found


@pytest.mark.parametrize("experiments", [
    ("paper_3b", "qwen3_vl_8b_from_32b"), pytest.param(tuple(EXPERIMENTS), marks=pytest.mark.long),
], ids=["two", "all"])  # fmt: skip
def test_the_layers_of_every_experiment_are_built_with_the_planned_parameters(experiments):
    kinds = sorted(_kinds(experiments))
    command = [sys.executable, "-m", "tests.planning.meta_stages", *kinds]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root(), timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\n") == len(kinds)
