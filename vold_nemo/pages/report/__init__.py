"""One self-contained HTML page about a run: numbers, curves, examples, and a verdict computed from them."""
