"""One rank of any layout, executed on a machine without a GPU: everything but the numbers.

A rehearsal runs the stages' own code (``models/stages.py``) on *fake* CUDA tensors, which have a shape, a type, a device and a
storage, and no values.  Operations, devices, groups, bytes, lifetimes and waits are those of a GPU; only numbers are not.

    shim.cpp, shim.py    the least of CUDA that torch asks for in C++, compiled on first use
    stand_ins.py         what is put in the place of others' functions, all of it, each with its reason
    watch.py             sees every operation, makes it fake, and writes it down in the ledger
    rules.py             what torch on a GPU and NCCL refuse, and fake tensors let pass
    values.py            small whole numbers and flags keep their values, so that control flow is exact
    groups.py            process groups of a world that is not there
    routing.py           experts that all get the same number of tokens
    ledger.py            memory by holder and phase, FLOPs, collectives, waits, copies, launches
    engine/              Transformer Engine's own Python layer over a stand-in of its compiled extension
    apex.py              NVIDIA's apex, where it is asked for
    inputs.py            weights without files, prompts and rollouts of the planned lengths, an engine of vLLM's size
    run.py               one stage, one rank
    export.py            the export of a finished run; written.py describes the checkpoint that it reads
    several.py           the telling ranks of one configuration; experiments.py: every experiment for GPUs
    findings.py          what must not be, and how far the plan is from it
"""
