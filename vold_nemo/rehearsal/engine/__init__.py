"""Transformer Engine's own Python layer over a stand-in of its compiled extension.

On a machine without a GPU the extension ``transformer_engine_torch`` cannot be built, yet everything above it is Python: the
modules that megatron-core's layer spec names, their autograd functions, FP8 tensors, the choice of an attention backend,
FusedAdam.  Here that Python layer runs unchanged, and each function of the extension is one that allocates what the real one
allocates, and returns it: kernels that compute nothing, on fake tensors that hold nothing.

=============================================  =====================================================================
:mod:`~vold_nemo.rehearsal.engine.importing`   makes ``import transformer_engine.pytorch`` work; fetches its wheel
:mod:`~vold_nemo.rehearsal.engine.declared`    what the extension declares: names, arguments, enumerators
:mod:`~vold_nemo.rehearsal.engine.quantise`    FP8 tensors: shapes of data and scales, casts
:mod:`~vold_nemo.rehearsal.engine.gemm`        matrix products, single and grouped
:mod:`~vold_nemo.rehearsal.engine.attention`   cuDNN's fused attention and its helpers under context parallelism
:mod:`~vold_nemo.rehearsal.engine.kernels`     norms, activations, rotary embedding, permutation, padding
:mod:`~vold_nemo.rehearsal.engine.optimizer`   kernels over lists of tensors: Adam, norm, scale
:mod:`~vold_nemo.rehearsal.engine.launched`    a stand-in of Triton, whose kernels Transformer Engine launches itself
:mod:`~vold_nemo.rehearsal.engine.fakes`       tensors' exact types and addresses, which Transformer Engine goes by
:mod:`~vold_nemo.rehearsal.engine.report`      where each kernel reports its work, and asks for values
=============================================  =====================================================================

A function of the extension that is not written here raises ``NotImplementedError`` with its name and arguments.  Nothing
outside a rehearsal imports this package.
"""

from vold_nemo.rehearsal.engine.importing import cached, fetch, install, wanted_version

__all__ = ["cached", "fetch", "install", "wanted_version"]
