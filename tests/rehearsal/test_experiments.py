"""Which experiments and which ranks `make rehearse` takes, and what it says of them."""

import subprocess
from types import SimpleNamespace

from vold_nemo.config.compose import compose
from vold_nemo.config.launcher import CONFIGURATION_ERROR
from vold_nemo.rehearsal import experiments, several


def test_all_experiments_for_gpus_and_none_of_the_miniatures():
    found = list(experiments.for_gpus())
    assert {"paper_3b", "qwen2_5_vl_72b_from_235b"} <= set(found) and not [name for name in found if "miniature" in name]


def test_the_telling_ranks_are_of_each_end_of_the_pipeline_and_of_other_experts_and_then_the_export():
    config = compose(["experiment=qwen2_5_vl_72b_from_235b"])
    found = list(several.telling(config))
    half = config.cluster.gpus.vold // 2
    assert config.parallel.pipeline == 2 and found[-1] == ("export", 0)
    assert {rank for stage, rank in found if stage == "vold"} == {
        0, config.parallel.expert - 1, half, half + config.parallel.expert - 1
    }  # fmt: skip
    assert {rank for stage, rank in found if stage == "sft"} == {0, config.cluster.gpus.sft // 2}


def test_the_end_names_who_had_violations_and_leaves_with_their_code(monkeypatch, capsys):
    monkeypatch.setattr(experiments, "for_gpus", lambda arguments: ["paper_3b", "paper_3b_h100"])
    asked = []

    def of(config):
        wrong = [{"kind": "does not fit"}] if config.cluster.name == "h100" else []
        return [{"stage": "sft", "rank": 0, "violations": wrong}]

    def run(command):
        asked.append(command)
        return SimpleNamespace(returncode=CONFIGURATION_ERROR if "experiment=paper_3b_h100" in command else 0)

    monkeypatch.setattr(experiments.kept, "of", of)
    monkeypatch.setattr(subprocess, "run", run)
    assert experiments.main(["rehearse.engine=local"]) == CONFIGURATION_ERROR
    said = capsys.readouterr().out
    assert all("rehearse.all=true" in command and "rehearse.engine=local" in command for command in asked)
    assert "no violation on 1 ranks" in said and "sft rank 0: does not fit" in said
