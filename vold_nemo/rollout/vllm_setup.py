"""What both uses of vLLM, as rollout engine and as the teacher that writes traces, ask of it before and around its start."""

from __future__ import annotations

import hashlib
import importlib.util
import os

from vold_nemo.config import ConfigError


def require_vllm(key: str) -> None:
    """ConfigError, in the name of the ``key`` that asks for it, where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        mend = f"pip install 'vold-nemo[vllm]', or set {key}=transformers"
        raise ConfigError(key, "vllm", "an environment that has vLLM 0.32", mend)


def require_build(key: str, device: str) -> None:
    """ConfigError, in the name of ``key``, where vLLM was built for another kind of device than ``device``: cpu, cuda."""
    from vllm.platforms import current_platform

    if current_platform.device_type != device:
        found, mend = f"vllm (built for {current_platform.device_type})", f"install that build, or set {key}=transformers"
        raise ConfigError(key, found, f"a build of vLLM for {device}", mend)


def quieten() -> None:
    """What vLLM reads while it is imported, unless somebody has set it."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_PLUGINS", "")  # NeMo brings a plugin of its own, which imports its speech collection


def request_seed(temperature: float, *parts: object) -> int | None:
    """62 bits that hang on ``parts`` alone; None where nothing is drawn.  vLLM adds a sample's number to them."""
    if temperature == 0:
        return None
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
