"""The day a GPU comes: what one GPU, in at most eight minutes, proves of what was only rehearsed (docs/first_gpu.md).

    python -m tests.gpu.acceptance               # on a machine with a GPU; `make gpu`
    python -m tests.gpu.acceptance --rehearse    # without one: every item to its last line, on a CPU and on a GPU that is
                                                 # played

``acceptance.py`` reads the command line, ``runner.py`` runs each item of ``items.py`` in a process of its own and writes a JSON
line when it ends, ``child.py`` is that process.  The other modules are the items.
"""
