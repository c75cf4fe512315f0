"""A language model behind any OpenAI-compatible endpoint says whether an answer is right: for what no rule reads.

Off unless a url is given (``evaluate.judge.url``, ``reward.judge.url``).  A local server (``vllm serve``) will do.  Each
verdict is kept under a hash of model and request, so that no answer is asked about twice and a second run needs no endpoint.
The key is read from an environment variable when a request is made; it is in no file, no message and no exception.
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
from dataclasses import replace
from pathlib import Path

from vold_nemo.config import ConfigError, JudgeConfig
from vold_nemo.rewards.boxed import outside_thinking
from vold_nemo.rewards.verdict import Verdict

KEPT = 6_000  # characters of a response, from its end, that the judge sees
_VERDICT = re.compile(r"\b(RIGHT|WRONG|NONE)\b")
INSTRUCTION = (
    "You compare the final answer of a response with the reference answer of the same question. Do not solve the question. "
    "Reply with one word: RIGHT if the response's final answer means the same as the reference (an option's letter and its "
    "text mean the same, so do equal numbers in other forms), WRONG if it means something else, NONE if the response gives no "
    "answer."
)


class Judge:
    """``ask`` may be called from several threads.

    Args:
        config: of the endpoint; ``key`` is where it lies: ``evaluate.judge``, ``reward.judge``.
        cache: file of the verdicts so far, which is added to; None keeps them in memory.

    Raises:
        ConfigError: no endpoint, or no model.
    """

    def __init__(self, config: JudgeConfig, cache: Path | None, key: str):
        self.config, self.key, self._file, self._lock = config, key, cache, threading.Lock()
        if config.url is None or config.model is None:
            raise ConfigError(key, None, "url and model", f"set {key}.url and {key}.model")
        if not config.url.startswith(("http://", "https://")):
            raise ConfigError(f"{key}.url", config.url, "http://... or https://...", "correct the address")
        self._failed = 0  # answers in a row that it gave no verdict on
        self._known: dict[str, str] = {}
        for line in cache.read_text().splitlines() if cache is not None and cache.is_file() else []:
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
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a") as file:
                    file.write(json.dumps({"key": key, "model": self.config.model, "verdict": verdict}) + "\n")
        return verdict

    def settle(self, asked: Sequence[tuple[str, str, str, Verdict]]) -> list[Verdict]:
        """Verdicts on ``(question, truth, response, what the rule said)``, ``parallel`` requests at a time; equal ones once.

        Where the endpoint gives none, the answer is an error: the rule's 0 would be no verdict on what it cannot read.
        """
        self._failed = 0
        different = list(dict.fromkeys(one[:3] for one in asked))
        with ThreadPoolExecutor(self.config.parallel) as threads:
            said = dict(zip(different, threads.map(lambda one: self._said(*one), different), strict=True))
        return [_verdict(said[one[:3]], one[3]) for one in asked]

    def _said(self, question: str, truth: str, response: str) -> str | None:
        if not response.strip():
            return "none"
        if self._failed > self.config.parallel:  # an endpoint that is gone is not waited for hundreds of times
            return None
        said = self.ask(question, truth, response)
        self._failed = 0 if said is not None else self._failed + 1
        return said

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
                        f"{self.key}.url", f"{self.config.url} answered {error.code}",
                        "an endpoint that knows the model and the key",
                        f"check {self.key}.url, {self.key}.model, and the variable {self.config.key_variable}",
                    ) from None  # fmt: skip
            except (OSError, ValueError, KeyError, IndexError, TypeError):
                pass
            if attempt < self.config.retries:
                time.sleep(min(30.0, 0.5 * 2**attempt))
        return None


def _verdict(said: str | None, rule: Verdict) -> Verdict:
    if said is None:
        return replace(rule, reward=0.0, reason="error: the judge did not answer", trouble="error")
    return Verdict(float(said == "right"), rule.extracted, f"judge: {said} ({rule.reason})")
