"""Sizes that :mod:`tests.rehearsal.engine_job` gives its layers."""

TOKENS, HIDDEN, WIDE = 1024, 512, 1536
