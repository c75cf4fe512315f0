"""math-verify's LaTeX grammar, read in two stages: the same trees in less than half the time.

ANTLR predicts the next rule from the whole context (LL) or from the text ahead alone (SLL).  LL costs milliseconds for an
interval, a point or a set; SLL finds the tree that LL finds, or reports a syntax error (ANTLR's own guarantee for
``PredictionMode.SLL``).  So a text is read with SLL, and once more with LL only if that fails.
"""

from __future__ import annotations

import functools


@functools.cache
def read_in_two_stages() -> None:
    """From now on, math-verify's parser in this process tries SLL first."""
    import latex2sympy2_extended.latex2sympy2 as converter
    from antlr4 import CommonTokenStream, PredictionMode

    class TwoStageParser(converter.PSParser):
        def math(self):  # the rule that a text starts with
            self._interp.predictionMode = PredictionMode.SLL
            try:
                return super().math()
            except Exception:  # the converter's error listener raises this class
                lexer = self.getTokenStream().tokenSource
                lexer.reset()
                self.setTokenStream(CommonTokenStream(lexer))  # from the first character on
                self._interp.predictionMode = PredictionMode.LL
                return super().math()

    converter.PSParser = TwoStageParser
