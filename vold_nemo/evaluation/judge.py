"""An optional judge: a language model behind any OpenAI-compatible endpoint says whether an answer is right.

Off unless ``evaluate.judge.url`` is set.  A local server (``vllm serve``) will do.  Each verdict is kept in ``judge.jsonl``
under a hash of model and request, so that no answer is asked about twice and a second run needs no endpoint.  The key is read
from an environment variable when a request is made; it is in no file, no message and no exception.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vold_nemo.config import ConfigError, JudgeConfig
from vold_nemo.data.prompts import Prompt, question_text
from vold_nemo.evaluation.answer_row import AnswerRow
from vold_nemo.rewards.boxed import outside_thinking

KEPT = 6_000  # characters of a response, from its end, that the judge sees
_VERDICT = re.compile(r"\b(RIGHT|WRONG|NONE)\b")
INSTRUCTION = (
    "You compare the final answer of a response with the reference answer of the same question. Do not solve the question. "
    "Reply with one word: RIGHT if the response's final answer means the same as the reference (an option's letter and its "
    "text mean the same, so do equal numbers in other forms), WRONG if it means something else, NONE if the response gives no "
    "answer."
)


class Judge:
    """``ask`` may be called from several threads."""

    def __init__(self, config: JudgeConfig, cache: Path):
        self.config, self._file, self._lock = config, cache, threading.Lock()
        if config.url is None or config.model is None:
            raise ConfigError(
                "evaluate.judge", None, "url and model", "set evaluate.judge.url and evaluate.judge.model"
            )
        if not config.url.startswith(("http://", "https://")):
            raise ConfigError("evaluate.judge.url", config.url, "http://... or https://...", "correct the address")
        self._known: dict[str, str] = {}
        for line in cache.read_text().splitlines() if cache.is_file() else []:
            try:
                row = json.loads(line)
                self._known[row["key"]] = row["verdict"]
            except (ValueError, KeyError, TypeError):  # a line that was cut off
                continue

    def ask(self, question: str, truth: str, response: str) -> str | None:
        """``right | wrong | none``; None if the endpoint did not answer, or not with a verdict."""
        text = f"Question:\n{question}\n\nReference answer:\n{truth}\n\nResponse:\n{outside_thinking(response)[-KEPT:]}"
        key = hashlib.blake2b(
            f"{self.config.model}\n{INSTRUCTION}\n{text}".encode("utf-8", "replace"), digest_size=16
        ).hexdigest()
        if key in self._known:
            return self._known[key]
        said = self._request(text)
        found = _VERDICT.findall(outside_thinking(said).upper()) if said else []
        if not found:
            return None
        verdict = found[-1].casefold()
        with self._lock:
            self._known[key] = verdict
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(json.dumps({"key": key, "model": self.config.model, "verdict": verdict}) + "\n")
        return verdict

    def _request(self, text: str) -> str | None:
        body = json.dumps({
            "model": self.config.model, "temperature": 0, "max_tokens": 2048,
            "messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}],
        }).encode()  # fmt: skip
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.config.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.config.url.rstrip('/')}/chat/completions", data=body, headers=headers)
        for attempt in range(self.config.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.config.seconds) as reply:
                    return json.load(reply)["choices"][0]["message"]["content"] or ""
            except urllib.error.HTTPError as error:
                if error.code in (400, 401, 403, 404):  # asking again will not help
                    raise ConfigError(
                        "evaluate.judge.url", f"{self.config.url} answered {error.code}",
                        "an endpoint that knows the model and the key",
                        f"check evaluate.judge.url, evaluate.judge.model, and the variable {self.config.key_variable}",
                    ) from None  # fmt: skip
            except (OSError, ValueError, KeyError, IndexError, TypeError):
                pass
            if attempt < self.config.retries:
                time.sleep(min(30.0, 0.5 * 2**attempt))
        return None


def judge_rows(rows: Sequence[AnswerRow], questions: dict[str, list[Prompt]], config: JudgeConfig, cache: Path) -> None:
    """Ask about the rows that ``config.reads`` names; write ``judge`` (the verdict or "failed") and ``reward`` into them.

    The rules' own reward stays in ``rule_reward``.  An answer on which the judge failed keeps it.
    """
    prompts = {(kind, p.id): p for kind, members in questions.items() for p in members}
    asked = [row for row in rows if config.reads == "all" or row.extracted is None]
    judge = Judge(config, cache)

    def ask(row: AnswerRow) -> str | None:
        if not row.text.strip():
            return "none"
        return judge.ask(question_text(prompts[row.set, row.id]), str(row.truth), row.text)

    with ThreadPoolExecutor(config.parallel) as pool:
        for row, verdict in zip(asked, pool.map(ask, asked), strict=True):
            row.rule_reward = row.reward
            row.judge = verdict or "failed"
            if verdict is not None:
                row.reward = float(verdict == "right")
