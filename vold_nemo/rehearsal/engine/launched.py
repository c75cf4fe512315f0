"""A stand-in of Triton: kernels that Transformer Engine and megatron-core launch from Python are reported, not run.

They are given their outputs, so that a launch allocates nothing.  (Transformer Engine's permutations are custom operators
with a fake implementation of their own, which is what runs; their scratch is not seen.)  Triton itself would do as well up to
the launch, which asks a driver for a device; and its wheel is 200 MB.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types

from vold_nemo.rehearsal.engine.report import kernel

VERSION = "3.5.0"  # Transformer Engine asks whether it is older (``common/triton/permutation.py``)


class Kernel:
    """What ``@triton.jit`` leaves of a function: ``kernel[grid](...)`` reports a launch."""

    def __init__(self, function):
        self.fn, self.__name__, self.__doc__ = getattr(function, "fn", function), function.__name__, function.__doc__

    def __getitem__(self, grid):
        def launch(*arguments, **settings) -> None:
            kernel(f"triton {self.__name__}")

        return launch

    def __call__(self, *arguments, **settings):
        raise NotImplementedError(f"the Triton function {self.__name__} runs on a device only")


def _decorator(*arguments, **settings):
    """``@triton.jit`` and ``@triton.jit(...)``; ``autotune`` and ``heuristics`` have settings always."""
    if len(arguments) == 1 and not settings and (isinstance(arguments[0], Kernel) or callable(arguments[0])):
        return Kernel(arguments[0])
    return Kernel


def _settings(*arguments, **settings):
    return Kernel


def _same(value=None, *rest, **settings):
    return value


class _Named(types.ModuleType):
    """``triton.language``: names that stand in annotations and in the bodies of kernels, which never run."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {"__init__": lambda self, *a, **k: None})
        setattr(self, name, value)
        return value


def _module(name: str, of: type = types.ModuleType, **contents) -> types.ModuleType:
    module = of(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    vars(module).update(contents)
    sys.modules[name] = module
    return module


def install() -> None:
    """Put ``triton`` and ``triton.language`` into ``sys.modules``, unless Triton itself is installed."""
    if "triton" in sys.modules:
        return
    core, standard = _module("triton.language.core", _Named), _module("triton.language.standard", _Named)
    libdevice = _module("triton.language.extra.libdevice", _Named)
    extra = _module("triton.language.extra", _Named, libdevice=libdevice)
    language = _module("triton.language", _Named, core=core, standard=standard, extra=extra)
    _module(
        "triton", __version__=VERSION, language=language, jit=_decorator, autotune=_settings, heuristics=_settings,
        constexpr_function=_same, Config=type("Config", (), {"__init__": lambda self, *a, **k: None}),
        cdiv=lambda x, y: -(-x // y), next_power_of_2=lambda n: 1 << max(n - 1, 0).bit_length(),
    )  # fmt: skip
