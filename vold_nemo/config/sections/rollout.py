"""Answers of the student, and their rewards."""

from __future__ import annotations

from dataclasses import dataclass

from vold_nemo.config.fields import ABOVE_ONE, ABOVE_ZERO, COUNT, LENGTH, PART, POSITIVE, key, section


@dataclass
class JudgeConfig:
    """A language model that reads the answers that the rules cannot; off without a url."""

    url: str | None = key(None, "of an OpenAI-compatible endpoint, up to /v1: http://localhost:8000/v1")
    model: str | None = key(None, "name that the endpoint knows it by")
    key_variable: str = key("OPENAI_API_KEY", "environment variable that holds the key; without one, none is sent")
    reads: str = key("unparsed", "the answers that no rule could read, or every one", choices=("unparsed", "all"))
    seconds: float = key(60.0, "time-out of one request", bound=ABOVE_ZERO)
    retries: int = key(3, "of a request that failed", bound=COUNT)
    parallel: int = key(8, "requests at a time", bound=POSITIVE)


@dataclass
class RewardConfig:
    """Verifiers (docs/verifiers.md); a row's `data.*.fields.verifier` column overrides the default."""

    verifier: str = key("boxed", "boxed (paper), math, choice, numeric, judge, package.module:function, or 0.8*math+0.2*boxed")
    seconds: float = key(2.0, "of processor time an answer; a verifier that takes more is killed and the answer is wrong",
                         bound=ABOVE_ZERO)  # fmt: skip
    workers: int | None = key(None, "killable verifier processes of a node, shared by its ranks; null = its cores, at most 32",
                              bound=POSITIVE)  # fmt: skip
    wall_seconds: float | None = key(None, "that an answer may sleep (waiting for a core is no sleep); null = 10 x seconds",
                                     bound=ABOVE_ZERO)  # fmt: skip
    isolation: str = key("auto", "verifiers have no network and change no file; auto: as far as the kernel allows it",
                         choices=("auto", "required", "off"))  # fmt: skip
    environment: list[str] = key([], "variables that verifiers see beside PATH, HOME, LANG and the like")
    verifiers: dict[str, str] = key({}, "name: package.module:function, own verifiers that rows may name")
    judge: JudgeConfig = section(JudgeConfig, "the endpoint of the verifier `judge`; off without a url")


@dataclass
class VLLMConfig:
    """The vLLM engine on each rank's device, beside the trainer (`rollout.engine=vllm`)."""

    tensor_parallel: int = key(1, "ranks in a row that are one engine; divides the world", bound=POSITIVE)
    memory_share: float = key(0.5, "of the device's memory: weights and key-value cache (vLLM's gpu_memory_utilization)",
                              bound=PART)  # fmt: skip
    cache_bytes: int | None = key(None, "size of a rank's key-value cache instead; null = what memory_share leaves",
                                  bound=POSITIVE)  # fmt: skip
    max_length: int | None = key(None, "tokens of a prompt with its answer; null = as many as the checkpoint has positions",
                                 bound=LENGTH)  # fmt: skip
    images: int = key(4, "most images of one prompt (validation)", bound=COUNT)
    eager: bool = key(False, "without CUDA graphs: starts faster, decodes slower")


@dataclass
class RolloutConfig:
    """The student answers the prompts of a step, on-policy."""

    engine: str = key("transformers", "plain PyTorch, the yardstick; or vLLM beside the trainer",
                      choices=("transformers", "vllm"))  # fmt: skip
    samples_per_prompt: int = key(5, "paper: K", bound=POSITIVE)
    temperature: float = key(1.0, "ours; greedy rollouts would have no policy gradient", bound=ABOVE_ZERO)
    max_tokens: int = key(8192, "of an answer", bound=POSITIVE)
    batch: int = key(64, "sequences generated at a time on a rank", bound=POSITIVE)
    stop: list[str] = key([], "texts that end an answer beside the model's end-of-sequence ids")
    overlong: str = key("keep", "ours: answers cut off for length leave the policy term, or both",
                        choices=("keep", "mask_policy", "mask_all"))  # fmt: skip
    token_budget: int | None = key(None, "ours: response tokens of a step, all ranks; once spent, what still runs is cut off",
                                   bound=POSITIVE)  # fmt: skip
    refill_rounds: int = key(0, "ours: times a step replaces its groups without any signal (all right) by other prompts",
                             bound=COUNT)  # fmt: skip
    probe_tolerance: float | None = key(
        None, "largest mean |log-prob difference| of engine and trainer on the same weights; null = 1e-3 in fp32, 5e-2 in bf16",
        bound=ABOVE_ZERO,
    )
    checksum_parts: int = key(8, "ours: a sync compares every n-th block of a tensor, other ones each time; the first one all",
                              bound=POSITIVE)  # fmt: skip
    mismatch_warning: float = key(3.0, "ours: warn where that mean is so many times its median over the last 20 steps",
                                  bound=ABOVE_ONE)  # fmt: skip
    sleep: bool = key(False, "the engine leaves the device while the teacher scores and the student trains")
    vllm: VLLMConfig = section(VLLMConfig)
