"""A step's rollouts in a terminal: what is filtered, what is shaded, and that no answer can play with the screen."""

import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vold_nemo.config import ConfigError
from vold_nemo.config.launcher import CONFIGURATION_ERROR
from vold_nemo.pages import rollout_view as view
from vold_nemo.step import Step, records

ROOT = Path(__file__).parents[2]
WORDS = ["two ", "and ", "two ", "is ", "\x1b[2J", "five", "<|im_end|>"]


def decode(ids):
    return "".join(WORDS[i] for i in ids)


@pytest.fixture
def run(tmp_path):
    ids = list(range(len(WORDS)))
    labels = {
        "id": ["sum"] * 2, "prompt": ["2+2?"] * 2, "truth": ["4"] * 2, "text": [decode(ids[:6]), decode(ids[:3])],
        "reason": ["differs", "equal"], "extracted": ["five", "4"],
    }  # fmt: skip
    step = Step.of(
        [[1]], [ids, ids[:3]], 2, labels, engine=[[-0.1] * 7, [-0.1] * 3], reward=[0.0, 1.0], truncated=[False, True],
        sample=[0, 1], scored=[True, False], trained=[True, True], advantage=[-1.0, 1.0],
        kl=[[0.0, 0.1, 0.3, 0.0, 0.01, 4.0, math.nan], [math.nan] * 3],
    )  # fmt: skip
    step["trainer"] = step["engine"] + torch.tensor([0.001] * 7 + [0.5, 0.0, 0.0])
    for number in (1, 2):
        records.write(step, tmp_path / "rollouts" / f"step_{number:06d}.jsonl")
    return tmp_path


def printed(renderable, colour=True):
    out = io.StringIO()
    Console(
        file=out, force_terminal=colour, color_system="truecolor" if colour else None, width=100, highlight=False, markup=False
    ).print(renderable)
    return out.getvalue()


def test_tokens_are_shaded_by_the_disagreement_of_student_and_teacher(run):
    rows = view.read(view.find_file(run, None))
    text, ranked = view.coloured(rows[0], decode, "kl")
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles == {"and ": view.SHADES[2 - 1], "two ": view.SHADES[2], "five": view.SHADES[4]}
    assert [(value, piece, at) for value, piece, at in ranked[:2]] == [(4.0, "five", 5), (0.3, "two ", 2)]
    assert "not scored by the teacher" in printed(view.detail(rows[1], decode, "kl"))
    assert view.coloured(rows[1], decode, "gap")[1][0] == (0.5, "two ", 0)


def test_no_answer_reaches_the_terminal_as_a_command(run):
    rows = view.read(view.find_file(run, 1))
    for shown in (view.detail(rows[0], decode, "kl"), view.detail(rows[0], None, "kl"), view.listing(rows)):
        assert "\x1b" not in printed(shown, colour=False) and "\x1b[2J" not in printed(shown)
    assert "␛[2J" in printed(view.detail(rows[0], None, "kl"), colour=False)
    assert view.harmless("a\ud800\u202eb\n") == "a?�b\n"


@pytest.mark.parametrize(
    ("wanted", "samples"),
    [
        (view.Filter(), [0, 1]),
        (view.Filter(reward=(0, 0)), [0]),
        (view.Filter(length=(0, 5)), [1]),
        (view.Filter(kl=(0.5, 9)), [0]),  # 4.41 over 6 tokens
        (view.Filter(kl=(0.8, 9)), []),
        (view.Filter(finish="length", scored=None), [1]),
        (view.Filter(scored=True), [0]),
        (view.Filter(id="product"), []),
    ],
)
def test_filters_keep_what_they_say(run, wanted, samples):
    assert [row["sample"] for row in view.read(view.find_file(run, 2)) if wanted.keeps(row)] == samples


def test_a_character_of_several_tokens_is_shown_once_and_whole():
    bits = [b"a", b"\xe2", b"\x9c", b"\x93", b" b", b"\xe2"]

    def by_bytes(ids):
        return b"".join(bits[i] for i in ids).decode("utf-8", "replace")

    assert view.pieces(range(6), by_bytes) == ["a", "", "", "✓", " b", "\ufffd"]


def test_the_command_reads_a_run_folder_and_leaves_with_2_where_there_is_nothing(run):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, str(ROOT / "recipes/show_rollouts.py"), *map(str, arguments)],
            capture_output=True, text=True, timeout=120, cwd=run,
        )  # fmt: skip

    done = call(run, "--reward", "0", "--list")
    assert done.returncode == 0 and "step_000002.jsonl: 1 of 2 rollouts" in done.stdout and "differs" in done.stdout
    short = call(run, "--show", "1")
    assert short.returncode == 0 and "1 more: --show 2" in short.stdout
    refused = call(run, "--show", "-3")
    assert refused.returncode == CONFIGURATION_ERROR and "0 or more" in refused.stderr
    missing = call(run, "--step", "7")
    assert missing.returncode == CONFIGURATION_ERROR and "--step = 7" in missing.stderr and "1, 2" in missing.stderr


def test_what_is_no_rollouts_file_and_no_tokenizer_is_refused_by_name(tmp_path):
    file = tmp_path / "step_000001.jsonl"
    for content, key in (b'{"reward": 0, "response_tokens": 1, "text": ""}\n\xff', f"{file}:2"), (b"", "run"):
        file.write_bytes(content)
        with pytest.raises(ConfigError) as error:
            view.read(file)
        assert error.value.key == key
    (tmp_path / "tokenizer.json").write_text("{}")
    for given in tmp_path / "nowhere", tmp_path:
        with pytest.raises(ConfigError, match="--tokenizer = "):
            view.tokenizer_of(file, given)
    assert view.tokenizer_of(file, None) is None
