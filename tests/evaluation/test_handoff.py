"""Other tools' answers in our tables: matched by place and truth, with their verdicts or ours."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.evaluation.cases import published
from vold_nemo.config import Config, ConfigError
from vold_nemo.evaluation.handoff import bring_in, write_script
from vold_nemo.evaluation.pairs import compare, read_models


def configured(tmp_path, **options) -> Config:
    published.write(tmp_path, "mmstar") if not (tmp_path / "mmstar").exists() else None
    config = Config()
    config.evaluate.benchmarks, config.evaluate.benchmark_paths = ["mmstar"], {"mmstar": str(tmp_path / "mmstar")}
    config.handoff.path = str(tmp_path / "handoff")
    for name, value in options.items():
        setattr(config.handoff, name, value)
    return config


@pytest.mark.parametrize(("tool", "says"), [("lmms_eval", "--tasks mmstar"), ("vlmevalkit", "run.py --config")])
def test_the_script_starts_the_tool_on_the_exported_checkpoint(tmp_path, tool, says):
    (tmp_path / "a model").mkdir()
    (tmp_path / "a model" / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    script = write_script(configured(tmp_path, tool=tool, model=str(tmp_path / "a model"), arm="vold"))
    assert says in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    if tool == "vlmevalkit":
        said = json.loads((tmp_path / "handoff" / "vlmevalkit.json").read_text())
        assert said["data"] == {"MMStar": {}} and said["model"]["vold"]["model_path"] == str(tmp_path / "a model")
    else:
        assert f"'pretrained={tmp_path}/a model'" in script.read_text()
    with pytest.raises(ConfigError, match="export_hf"):
        write_script(configured(tmp_path, model=str(tmp_path / "nowhere")))


def test_a_qwen3_vl_goes_to_the_tool_s_own_class_or_nowhere(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    script = write_script(configured(tmp_path, tool="lmms_eval", model=str(tmp_path)))
    assert "--model qwen3_vl " in script.read_text()
    with pytest.raises(ConfigError, match="qwen2_5_vl"):
        write_script(configured(tmp_path, tool="vlmevalkit", model=str(tmp_path)))


def write_lmms_eval(tmp_path):
    """Two samples as ``save_results_samples`` writes them; the second verdict is a mistake of theirs."""
    folder = tmp_path / "theirs" / "model"
    folder.mkdir(parents=True)
    samples = [
        {"doc_id": 0, "target": "B", "filtered_resps": ["The cat"], "average": {"question_id": 0, "score": 1.0}},
        {
            "doc_id": 1,
            "target": "C",
            "resps": [["C: 3,000"]],
            "filtered_resps": ["x"],
            "average": {"question_id": 1, "score": 0.0},
        },
    ]
    file = folder / "20261125_samples_mmstar.jsonl"
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return tmp_path / "theirs"


def test_lmms_eval_s_samples_come_with_their_verdicts_or_ours(tmp_path):
    folder = write_lmms_eval(tmp_path)
    theirs = bring_in(configured(tmp_path, bring=str(folder), arm="lmms"))
    assert theirs.accuracy["lmms"]["mmstar"].correct == 1
    ours = bring_in(configured(tmp_path, bring=str(folder), arm="rescored", scorer="ours"))
    assert ours.accuracy["rescored"]["mmstar"].correct == 2 and set(ours.accuracy) == {"lmms", "rescored"}
    (pair,) = compare(read_models({"both": str(tmp_path / "handoff")})).pairs["mmstar"]
    assert (pair.wins, pair.losses) == (["1"], []), "the questions go by the published ids"


def test_vlmevalkit_s_judged_file_goes_before_its_predictions(tmp_path):
    folder = tmp_path / "T1"
    folder.mkdir()
    head = "index\tquestion\tanswer\tprediction"
    (folder / "m_MMStar.tsv").write_text(f"{head}\n0\tq\tB\tB\n1\tq\tC\tA\n")
    (folder / "m_MMStar_acc.csv").write_text("x\n")
    with pytest.raises(ConfigError, match="with a verdict"):
        bring_in(configured(tmp_path, tool="vlmevalkit", bring=str(folder)))
    judged = [{"index": 0, "question": "q", "answer": "B", "prediction": "B", "hit": 1, "log": "x"},
              {"index": 1, "question": "q", "answer": "C", "prediction": "A", "hit": 0, "log": "x"}]  # fmt: skip
    (folder / "m_MMStar_gpt-4o-mini_result.json").write_text(json.dumps(judged))
    found = bring_in(configured(tmp_path, tool="vlmevalkit", bring=str(folder), arm="kit"))
    assert found.accuracy["kit"]["mmstar"].value == 0.5
    columns = {name: {str(i): row[name] for i, row in enumerate(judged)} for name in judged[0]}
    (folder / "m_MMStar_gpt-4o-mini_result.json").write_text(json.dumps(columns))
    assert bring_in(configured(tmp_path, tool="vlmevalkit", bring=str(folder), arm="kit")) == found


def test_what_is_no_file_of_theirs_is_named(tmp_path):
    with pytest.raises(ConfigError, match="samples_<task>"):
        bring_in(configured(tmp_path, bring=str(tmp_path)))
    config = configured(tmp_path, model=str(tmp_path))
    config.evaluate.benchmarks = ["geometry3k"]
    with pytest.raises(ConfigError, match="no such benchmark"):
        write_script(config)
    folder = write_lmms_eval(tmp_path)
    (file,) = folder.rglob("*.jsonl")
    file.write_text(file.read_text() + '{"target": "B", "resps": [["B"]]}\n')
    with pytest.raises(ConfigError, match=r"samples_mmstar\.jsonl, line 3: doc_id"):
        bring_in(configured(tmp_path, bring=str(folder)))
    (tmp_path / "m_MMStar_judge.json").write_text(json.dumps([{"index": 0, "prediction": "B", "hit": "perhaps"}]))
    with pytest.raises(ConfigError, match=r"m_MMStar_judge\.json, answer 1 = 'perhaps'"):
        bring_in(configured(tmp_path, tool="vlmevalkit", bring=str(tmp_path / "m_MMStar_judge.json")))
