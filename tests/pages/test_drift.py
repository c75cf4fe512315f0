"""The drift page shows the numbers of drift.json, and is written with it."""

from __future__ import annotations

import json

import pytest

from vold_nemo.config import ConfigError
from vold_nemo.pages.drift import write

FOUND = {
    "teacher": "a/teacher", "precision": "fp8", "layout": "tensor 1", "source": "traces.jsonl",
    "kl_mean": 0.00734, "kl_max": 1.2345, "kl_quantiles": {"0.5": 0.0012, "0.99": 0.3}, "same_first_choice": 0.9876,
    "tokens": 12345, "traces": 64, "gradient_cosine": 0.998765, "gradient_norm_ratio": 1.0023, "layers": [0.02, 0.08],
    "worst_tokens": [
        {"trace": "t7", "position": 3, "kl": 1.2345, "token": "\ud800<b>", "before": "so", "same_first_choice": False},
    ],
}  # fmt: skip


def test_the_page_holds_the_numbers(tmp_path):
    page = write(tmp_path, FOUND).read_text()
    assert json.loads((tmp_path / "drift.json").read_text()) == FOUND
    for text in ("a/teacher", "0.00734 nats", "1.234 nats", "50.0% of tokens below 0.0012, 99.0% of tokens below 0.3", "98.76%",
                 "12,345 tokens, 64 traces", "0.99877", "1.0023", "layer 1", "&#39;\\ud800&lt;b&gt;&#39;"):  # fmt: skip
        assert text in page, text
    assert "width:25.00%" in page and "width:100.00%" in page, "a layer's error beside the largest"


def test_a_folder_that_cannot_be_written_is_an_error_of_its_key(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"drift\.path"):
        write(tmp_path / "file" / "out", FOUND)
