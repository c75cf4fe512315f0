"""What a recipe keeps to itself of megatron-core's loggers."""

import logging

from vold_nemo.command import quiet
from vold_nemo.megatron.versions import NOTICES


def test_notices_of_deprecation_are_dropped_and_warnings_pass():
    quiet.drop_notices()
    for name, beginning in NOTICES.items():
        logger = logging.getLogger(name)
        said = (f"{beginning}.", "gradients overflow")
        notice, warning = (logger.makeRecord(name, logging.WARNING, "file", 1, words, (), None) for words in said)
        assert not logger.filter(notice) and logger.filter(warning)
