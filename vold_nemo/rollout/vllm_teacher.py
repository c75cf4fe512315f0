"""The teacher on vLLM, for traces at scale: a stream of prompts in, each answer out as soon as it is whole.

A task holds one engine and no process group; ``tensor_parallel`` GPUs of its node are one engine.  Requests are fed while
others decode, so no answer waits for the longest of a batch, and what is done is on the disk when a job is killed.  An
answer's random numbers hang on (seed, prompt key, sample); which others decode beside it changes the last bits of a logit, so
a resumed run samples from the same distribution and not the same tokens.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vold_nemo.config import ConfigError, TracesConfig, staged
from vold_nemo.rollout.engine import Completion, EnginePrompt, Sampling
from vold_nemo.rollout.vllm_setup import quieten, request_seed, require_build, require_vllm

# Of a launcher: vLLM would take them for a world of its own making.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def devices_of(local_rank: int, size: int, visible: Sequence[str]) -> list[str]:
    """The ``size`` of the ``visible`` devices that belong to the task ``local_rank`` of this node.

    Raises:
        ConfigError: they are too few.
    """
    if len(visible) == size:  # the launcher has bound each task to its own
        return list(visible)
    mine = list(visible[local_rank * size : (local_rank + 1) * size])
    if len(mine) < size:
        raise ConfigError(
            "traces.tensor_parallel", size, f"at most the GPUs of a task ({len(visible)} are visible to task {local_rank})",
            "start fewer tasks on a node, or give each more GPUs",
        )  # fmt: skip
    return mine


class VLLMTeacher:
    """A text model that answers prompts.

    Args:
        traces: longest prompt and answer, GPUs of one engine, its share of their memory, sequences that decode at a time.
        dtype: name of a torch type.
        visible: GPUs that the launcher lets this task see; empty on a CPU.

    Raises:
        ConfigError: vLLM is missing, was built for another kind of device, or lacks GPUs.
    """

    def __init__(
        self, path: str | Path, traces: TracesConfig, *, dtype: str, stop_ids: Sequence[int], local_rank: int,
        visible: Sequence[str],
    ):  # fmt: skip
        require_vllm("traces.engine")
        if visible:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices_of(local_rank, traces.tensor_parallel, visible))
        quieten()
        from vllm import LLM

        require_build("traces.engine", "cuda" if visible else "cpu")
        self.stop_ids, self.batch = list(stop_ids), traces.batch
        with _without(_LAUNCHER):
            self._engine = LLM(
                model=str(staged.here(path)), dtype=dtype, load_format="safetensors",
                tensor_parallel_size=traces.tensor_parallel,
                gpu_memory_utilization=traces.memory_share, max_num_seqs=traces.batch,
                max_model_len=traces.max_prompt_tokens + traces.max_tokens,
                generation_config="vllm",  # none of the checkpoint's own sampling habits (top-k, repetition penalty)
                disable_log_stats=True,
            ).llm_engine  # fmt: skip

    def answers(self, asked: Iterable[tuple[int, int, EnginePrompt]], sampling: Sampling) -> Iterator[Completion]:
        """The completion of each (prompt index, sample, prompt), in the order in which they end; no log-probs are kept."""
        waiting, open_requests = iter(asked), {}
        while True:
            while len(open_requests) < 2 * self.batch:  # enough in the queue that no slot of the batch is ever empty
                item = next(waiting, None)
                if item is None:
                    break
                index, sample, prompt = item
                name = f"{index}/{sample}"
                open_requests[name] = (index, sample)
                self._engine.add_request(name, {"prompt_token_ids": prompt.ids}, self._parameters(sample, prompt, sampling))
            if not open_requests:
                return
            for output in self._engine.step():
                if output.finished:
                    index, sample = open_requests.pop(output.request_id)
                    answer = output.outputs[0]
                    yield Completion(index, sample, list(answer.token_ids), [], answer.finish_reason)

    def _parameters(self, sample: int, prompt: EnginePrompt, sampling: Sampling):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature, max_tokens=sampling.max_tokens, detokenize=False, ignore_eos=True,
            stop_token_ids=self.stop_ids, output_kind=RequestOutputKind.FINAL_ONLY,
            seed=request_seed(sampling.temperature, sampling.seed, prompt.key, sample),
        )  # fmt: skip


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """These environment variables unset inside the block, also for processes started in it."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
