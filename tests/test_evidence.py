"""What the experiments and the README say has been run, they say by files under benchmarks/results/."""

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from benchmarks import evidence
from vold_nemo.config.compose import compose

ROOT = Path(__file__).parents[1]
RECORDS = evidence.records()


@pytest.mark.parametrize("name", evidence.experiments())
def test_an_experiment_bears_the_level_of_its_record(name):
    config, record = compose([f"experiment={name}"]), RECORDS.get(name)
    if record is not None:
        assert evidence.sets(name) == record["sets"], f"{name} is not what was run: run it anew, or take its record out"
    assert config.evidence == evidence.said(record)
    assert any(config.evidence.startswith(level) for level in evidence.LEVELS)


def test_a_rehearsed_experiment_had_every_telling_rank():
    for name, record in RECORDS.items():
        if record["level"] == evidence.REHEARSED:
            stages = [one.split()[0] for one in record["ranks"]]
            assert {"sft", "vold", "export"} <= set(stages), name
            assert {"torch", "megatron-core", "Transformer Engine"} <= set(record["versions"]), name


def test_no_experiment_was_run_on_a_gpu_without_a_file_of_one():
    for name, record in RECORDS.items():
        if record["level"] == evidence.GPU:
            assert "cuda" in (evidence.KEPT.parent / record["file"]).read_text().lower(), name


def test_every_experiment_for_gpus_was_rehearsed_as_it_is():
    from vold_nemo.rehearsal.experiments import for_gpus

    assert all(RECORDS.get(name, {}).get("level") in (evidence.REHEARSED, evidence.GPU) for name in for_gpus())


def test_what_is_no_record_any_more_is_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "KEPT", tmp_path / "evidence.json")
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# @package _global_\n# Mine.\n\nname: mine\n")
    monkeypatch.setattr(evidence, "conf", lambda: tmp_path)
    versions = {"torch": "2.13.0", "megatron-core": "0.16.1"}
    evidence.write({"mine": {"level": evidence.CPU, "date": "2026-11-29", "versions": versions}})
    line = "evidence: run on a CPU in miniature 2026-11-29 (torch 2.13.0, megatron-core 0.16.1)\n"
    assert (folder / "mine.yaml").read_text() == f"# @package _global_\n# Mine.\n\n{line}name: mine\n"
    (tmp_path / "evidence.json").unlink()
    evidence.write({})
    assert "\nevidence: planned\n" in (folder / "mine.yaml").read_text()


def test_runs_that_are_not_there_are_no_evidence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="paper_3b: not rehearsed as it is now: sft rank 0 of 32"):
        evidence.main(["rehearsed", "paper_3b"])
    with pytest.raises(SystemExit, match="make demo first"):
        evidence.main(["demo", str(tmp_path)])


def test_a_demo_of_other_settings_is_no_evidence(tmp_path):
    folder = tmp_path / "miniature_tp2"
    arms, kinds = ("base", "sft", "sft_grpo", "sft_vold"), ("text", "image")
    accuracy = {arm: {kind: {"value": 0.5, "n": 8} for kind in kinds} for arm in arms}
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation/results.json").write_text(json.dumps({"accuracy": accuracy}))
    for arm, steps in (("sft_vold", 70), ("sft_grpo", 49)):
        name = "miniature" if arm == "sft_vold" else "miniature_grpo"
        config = OmegaConf.structured(compose([f"experiment={name}", f"vold.steps={steps}", "parallel=tp2"]))
        (folder / arm).mkdir()
        OmegaConf.save(config, folder / arm / "config.yaml")
    found = evidence.demo(folder)
    assert next(found)[0] == "miniature"
    with pytest.raises(SystemExit, match=r"run with another vold\.steps than miniature_grpo has now"):
        next(found)


def rows_of_the_readme():
    table = (ROOT / "README.md").read_text().partition("## What was measured, and where")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    head, rows = lines[0], lines[2:]
    assert [word.strip() for word in head.strip("|").split("|")] == ["what", "evidence", "where", "result"]
    for line in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        assert len(cells) == 4, line
        yield cells


def test_every_row_of_the_readme_bears_a_level():
    for what, level, _, _ in rows_of_the_readme():
        assert level in evidence.LEVELS, what


def test_a_row_that_names_a_result_has_it_and_no_row_is_above_its_file():
    for what, level, where, result in rows_of_the_readme():
        files = re.findall(r"\((benchmarks/results/[^)#]+)", f"{what} {where} {result}")
        for file in files:
            assert (ROOT / file).is_file(), file
        if level == evidence.GPU:
            assert files and any("cuda" in (ROOT / file).read_text().lower() for file in files), f"{what}: no file says so"


def test_the_readme_has_the_demo_as_it_was_recorded():
    shown = {what: result for what, _, _, result in rows_of_the_readme()}
    for kind in ("image", "text"):
        (result,) = (result for what, result in shown.items() if what.startswith(f"{kind} accuracy"))
        told = [float(number) for number in re.findall(r"\d+\.\d", result)]
        kept = RECORDS["miniature"]["accuracy"]
        arms = ("base", "sft", "sft_grpo", "sft_vold")
        assert told == pytest.approx([100 * kept[arm][kind] for arm in arms], abs=0.0501), kind
