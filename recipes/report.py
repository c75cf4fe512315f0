"""One self-contained HTML page about an experiment: accuracy, curves, examples, and a verdict computed from the numbers.

    python recipes/report.py experiment=miniature

Reads ``report.results`` (written by recipes/evaluate.py) and the run folders named in ``report.runs``; writes ``report.path``.
Needs no network and no browser; what is missing is said on the page.
"""

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(alone=True, reads=("report", "evaluate", "data"))
def main(config: Config) -> None:
    from vold_nemo.pages.report.page import write_report
    from vold_nemo.pages.report.verdict import headline

    path, material = write_report(config)
    for line in material.missing:
        print(f"missing: {line}")
    print(headline(material.results).text)
    print(f"report: {path}")


if __name__ == "__main__":
    main()
