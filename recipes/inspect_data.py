"""Look at a data set as a run would read it: columns, lengths, forms of keys, duplicates, what would be rejected, and why.

    python recipes/inspect_data.py data=orz_57k                                        data.prompts of a configuration
    python recipes/inspect_data.py experiment=paper_3b inspect.set=data.trace_prompts 'inspect.tokenizer=${student.path}'
    python recipes/inspect_data.py inspect.data.path=mine.parquet inspect.data.fields.answer=reward_model.ground_truth
    python recipes/inspect_data.py inspect.data.path=openai/gsm8k inspect.data.subset=main reward.verifier=math

Any set that ``data`` takes: a file, a folder, a hub id in the local cache, with the same ``fields``.  Prints tables, and writes
``inspection.html``, ``inspection.json`` and ``rejected.jsonl`` under ``inspect.path``.  A set without the columns that
``fields`` names is shown with those that it has; the command then leaves with 2.
"""

import os
import sys

from vold_nemo.command import recipe
from vold_nemo.command.recipe import until_nobody_reads
from vold_nemo.config import Config


@recipe(alone=True, reads=("inspect", "data", "reward", "traces", "rollout", "evaluate", "vold"))
def main(config: Config) -> None:
    from rich.console import Console

    from vold_nemo.data.inspection import inspect
    from vold_nemo.pages import inspection

    found = inspect(config)
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    page = inspection.write(config.inspect.path, found)
    with until_nobody_reads():
        inspection.show(found, Console(highlight=False, markup=False, emoji=False, width=wide))
        print(f"\nwritten: {page}")
    if found.wrong is not None:
        raise found.wrong


if __name__ == "__main__":
    main()
