"""Files that others wrote: the same rows with a byte order mark, CRLF or JSON lines; folders that training refuses."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from vold_nemo.config import Config, ConfigError, EvaluateConfig, VerifyConfig
from vold_nemo.data.rejected import Rejected
from vold_nemo.evaluation.benchmark import evaluate
from vold_nemo.evaluation.benchmarks.load import _rows
from vold_nemo.evaluation.handoff import read_lmms_eval, read_vlmevalkit
from vold_nemo.evaluation.verify import first_answers, verify
from vold_nemo.pages.rollout_view import read

ROWS = [{"id": "a", "n": 1}, {"id": "b", "n": 2}]
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS).encode(), BOM + json.dumps(ROWS).encode(), json.dumps(ROWS).encode("utf-16"),
        b"\r\n".join(json.dumps(row).encode() for row in ROWS), BOM + b"\n".join(json.dumps(row).encode() for row in ROWS),
        BOM + json.dumps({row["id"]: {"n": row["n"]} for row in ROWS}).encode(),
    ],
    ids=["array", "array, BOM", "array, UTF-16", "lines, CRLF", "lines, BOM", "rows by id, BOM"],
)  # fmt: skip
def test_a_benchmark_s_json_is_read_in_every_form(tmp_path, content):
    file = tmp_path / "dataset.json"
    file.write_bytes(content)
    assert [row for _, row in _rows(file, Rejected(None, 0.0))] == ROWS


def test_a_benchmark_s_json_that_is_none_is_named(tmp_path):
    file = tmp_path / "dataset.json"
    file.write_bytes(b"[{")
    with pytest.raises(ConfigError, match=r"dataset\.json"):
        list(_rows(file, Rejected(None, 0.0)))


def test_answers_of_other_tools_may_have_a_mark_and_blank_lines(tmp_path):
    file = tmp_path / "x_MMStar.tsv"
    file.write_bytes(BOM + b"index\tprediction\tanswer\r\n7\tA\tB\r\n")
    assert [(answer.index, answer.text, answer.truth) for answer in read_vlmevalkit(file)] == [("7", "A", "B")]
    file = tmp_path / "x_samples_mmstar.jsonl"
    file.write_bytes(BOM + b'{"doc_id": 7, "resps": [["A"]], "target": "B"}\r\n\r\n')
    assert [(answer.index, answer.text) for answer in read_lmms_eval(file)] == [("7", "A")]
    file = tmp_path / "step_000001.jsonl"
    file.write_bytes(BOM + b'{"reward": 1, "response_tokens": 2, "text": "x"}\r\n')
    assert len(read(file)) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_config.json", "{}", "an adapter"), ("quant_config.json", "{}", "unquantised"),
        ("config.json", '{"quantization_config": {"quant_method": "awq"}}', "awq"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}', "one set of weights"),
    ],
)  # fmt: skip
def test_evaluate_refuses_what_training_refuses(tmp_path, name, content, said):
    (tmp_path / "config.json").write_text("{}")
    for file in ("model.safetensors", "model-00001-of-00001.safetensors")[: 1 + ("index" in name)]:
        save_file({"a": np.zeros(2, np.float32)}, tmp_path / file)
    config = Config(device="cpu", evaluate=EvaluateConfig(models={"mine": str(tmp_path)}, path=str(tmp_path / "out")))
    if "index" not in name:
        with pytest.raises(ConfigError, match="at least one dataset"):
            evaluate(config)
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        evaluate(config)
    assert caught.value.key.startswith("evaluate.models.mine")


def test_verify_names_its_own_keys_and_the_columns_of_the_file(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"output": "a", "truth": "b"}\n')
    config = Config(verify=VerifyConfig(answers=str(file), path=str(tmp_path / "out")))
    for look in (lambda: verify(config), lambda: first_answers(config, Rejected(None, 0.1), 10)):
        with pytest.raises(ConfigError) as caught:
            look()
        assert caught.value.key == "verify.fields.response" and "output, truth" in caught.value.allowed


def test_a_file_of_answers_that_is_not_there_starts_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr("vold_nemo.rewards.Scorer.start", lambda *a: pytest.fail("processes were started"))
    config = Config(verify=VerifyConfig(answers=str(tmp_path / "none.jsonl"), path=str(tmp_path / "out")))
    with pytest.raises(ConfigError) as caught:
        verify(config)
    assert caught.value.key == "verify.answers"
