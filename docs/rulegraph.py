"""Draw the demo's rule graph in README.md, as Mermaid (which GitHub shows as a picture) between two marker comments."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BEGIN, _END = "<!-- rule graph: made by `make docs` -->", "<!-- /rule graph -->"
_TARGET = "all"  # runs no job
_COMPLETE = "ask_transformers"  # keeps all its arrows: they tell which checkpoints are asked
_LAYOUT = '%%{init: {"flowchart": {"rankSpacing": 28, "nodeSpacing": 20, "padding": 8}}}%%'

Arrow = tuple[str, str]


def updated(readme: str) -> str:
    """The text of the README with the graph between the markers replaced by the present one."""
    head, rest = readme.split(_BEGIN, 1)
    tail = rest.split(_END, 1)[1]
    return f"{head}{_BEGIN}\n```mermaid\n{_mermaid(_readable(_arrows()))}\n```\n{_END}{tail}"


def _arrows() -> set[Arrow]:
    """(rule, rule that reads its output), for every pair of rules of the demo that run jobs."""
    command = ["snakemake", "--forceall", "--rulegraph", "mermaid-js"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    names = dict(re.findall(r"^\s*(id\d+)\[(\w+)\]$", done.stdout, re.MULTILINE))
    pairs = re.findall(r"^\s*(id\d+) --> (id\d+)$", done.stdout, re.MULTILINE)
    return {(names[first], names[second]) for first, second in pairs if names[second] != _TARGET}


def _readable(arrows: set[Arrow]) -> list[Arrow]:
    """The arrows that do not follow from others, sorted."""
    return sorted(
        arrow for arrow in arrows if arrow[1] == _COMPLETE or not _leads(arrow[0], arrow[1], arrows - {arrow})
    )


def _leads(first: str, last: str, arrows: set[Arrow]) -> bool:
    return any(start == first and (end == last or _leads(end, last, arrows)) for start, end in arrows)


def _mermaid(arrows: list[Arrow]) -> str:
    rules = sorted({rule for arrow in arrows for rule in arrow})
    nodes = [f'    {rule}["{rule.replace("_", "<br>")}"]' for rule in rules]
    return "\n".join([_LAYOUT, "flowchart LR", *nodes, *(f"    {first} --> {second}" for first, second in arrows)])


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")
