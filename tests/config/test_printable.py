"""No escape sequence and no lone surrogate of a file or a name reaches a terminal, whatever else is in the text."""

import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vold_nemo.config.printable import Guarded, harmless, harmless_in

ROOT = Path(__file__).parents[2]
SEQUENCES = [
    "\x1b[31m", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\", "\x9b2J", "\x9d0;t\x9c", "\x08", "\r", "\x00", "\x7f", "\ud800",
             "\udfff", "\u202e", "\u2066", "\u200f", "\u2028", "\x85", "\x1bP", "\x1bc", "\x0e"]  # fmt: skip
texts = st.lists(st.sampled_from(SEQUENCES) | st.characters(), max_size=8).map("".join)
held = st.recursive(texts | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2))
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def obeyed(text: str) -> list[str]:
    """What a terminal would do more with than draw it: controls but tab and newline, signs that turn the order, surrogates."""
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    kinds = {"Cc", "Cs", "Zl", "Zp"}
    found = [sign for sign in text if unicodedata.category(sign) in kinds or unicodedata.bidirectional(sign) in turning]
    return [sign for sign in found if sign not in "\t\n"]


@few
@given(texts)
def test_what_a_terminal_would_obey_is_drawn_and_the_rest_is_kept(text):
    shown = harmless(text)
    assert not obeyed(shown) and len(shown) == len(text) and harmless(shown) == shown == shown.encode("utf-8").decode()
    assert all(a == b for a, b in zip(text, shown, strict=True) if not obeyed(a) and a not in "\u200e\u200f\u061c")


@few
@given(held)
def test_so_it_is_inside_what_a_json_file_holds(value):
    assert not obeyed(json.dumps(harmless_in(value), ensure_ascii=False))


@few
@given(texts)
def test_a_guarded_stream_passes_nothing_else_on(text):
    for bars in (False, True):
        stream = io.StringIO(newline="")
        print(text, file=Guarded(stream, bars=bars))
        said = stream.getvalue()
        assert not obeyed(said.strip("\r") if bars else said) and ("\r" not in said.lstrip("\r")[:-1].rstrip("\r"))


def test_a_progress_bar_is_drawn_through_it():
    from tqdm import tqdm

    plain, guarded = io.StringIO(), io.StringIO()
    for stream, file in ((plain, plain), (guarded, Guarded(guarded, bars=True))):
        for _ in tqdm(range(3), file=file, bar_format="{l_bar}{n}", mininterval=0, leave=False):
            pass
        assert "100%" in stream.getvalue()
    assert plain.getvalue() == guarded.getvalue()


def test_a_hostile_run_is_watched_in_a_terminal_and_tells_it_nothing(tmp_path):
    """Host and phase of a heartbeat, a metric's phase, the checkpoint's name, and the run's own name."""
    hostile = "".join(sign for sign in SEQUENCES if sign != "\x00")
    folder = tmp_path / "run \x1b[31m \u202e"
    (folder / "heartbeat").mkdir(parents=True)
    beat = {"rank": 0, "world": 1, "step": 1, "total": 3, "phase": hostile, "host": hostile, "process": 1, "time": 1.0,
            "seconds_in_phase": 2.0}  # fmt: skip
    (folder / "heartbeat/rank_0.json").write_text(json.dumps(beat))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "seconds": {hostile: 1.0}}) + "\n")
    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "recipes/watch.py"), str(folder), "--once"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**os.environ, "PATH": "/nowhere"})
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 65536):
            said += chunk
    except OSError:  # the other end is closed
        pass
    assert process.wait(timeout=60) == 0, said
    shown = said.decode().replace("\r\n", "\n")
    assert not obeyed(shown) and "␛[31m" in shown and "SILENT" in shown
