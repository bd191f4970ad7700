"""The page of a folder run: one file without any link to the network, a table that can be sorted and searched."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from digar.inference.journal import FAILED, Outcome
from digar.volumes.files import printable

PAGE_BYTES = 14_000_000  # of all rows together
PICTURE_BYTES = 12_000_000  # of all pictures together; later rows go without
ROWS = 5000
ORDER = "those that failed first, then those with warnings"

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #1c2430; background: #fff; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
.counts b { font-size: 1.3rem; margin-right: .3rem; } .counts span { margin-right: 1.6rem; }
details { margin: .7rem 0; } pre { background: #f4f5f7; padding: .7rem; overflow: auto; }
input { padding: .35rem .5rem; margin: .6rem 0; width: 22rem; max-width: 100%; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .55rem; border-bottom: 1px solid #dfe3e8; vertical-align: top; }
th { position: sticky; top: 0; background: #eef1f5; cursor: pointer; white-space: nowrap; user-select: none; }
th[aria-sort=ascending]::after { content: " \\25b2"; } th[aria-sort=descending]::after { content: " \\25bc"; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.file { word-break: break-all; min-width: 10rem; }
tr.failed td { background: #fdf0ef; } .failed .status { color: #a3180f; font-weight: 600; }
.warning { color: #8a5a00; } img { display: block; height: 110px; }
"""

SCRIPT = """
const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("th")];
const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
heads.forEach((head, column) => head.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") !== "ascending";
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const order = (a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const numbers = x - y;
    return (Number.isNaN(numbers) ? x.localeCompare(y) : numbers) * (up ? 1 : -1);
  };
  body.append(...[...body.rows].sort(order));
}));
document.querySelector("input").addEventListener("input", event => {
  const text = event.target.value.toLowerCase();
  for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(text);
});
"""


def report_page(
    facts: Mapping[str, Any], outcomes: Sequence[Outcome], labels: Mapping[int, str], thumbnails: bool = True
) -> str:
    """The report as HTML, whose size does not grow without end: see :func:`shown_rows`.

    Args:
        facts: of the run; the counts among them stand at the top.
        outcomes: of all images, gone through twice.
        labels: value in the mask to name.
        thumbnails: show the pictures that there are, as many as fit ``PICTURE_BYTES``.
    """
    rows: list[str] = []
    room = PAGE_BYTES
    picture_room = PICTURE_BYTES if thumbnails else 0
    order, word = shown_rows(outcomes)
    pictured = thumbnails and any(outcomes[index].thumbnail for index in order)
    for index in order:
        outcome = outcomes[index]
        shown = len(outcome.thumbnail) <= picture_room
        picture_room -= len(outcome.thumbnail) if shown else 0
        row = _row(outcome, labels, pictured, shown)
        room -= len(row)
        if room < 0:
            word = f"The first {len(rows)} of {len(outcomes)} images, {ORDER}; report.csv has all."
            break
        rows.append(row)
    heads = ["file", "status", "reason and warnings", *(f"{name}, ml" for name in labels.values()), "seconds"]
    heads += ["sagittal, coronal, axial"] if pictured else []
    counts = "".join(
        f"<span><b>{facts[name]}</b>{name.replace('_', ' ')}</span>"
        for name in ("images", "done", "with_warnings", "failed", "not_run")
        if name in facts
    )
    described = html.escape(json.dumps(dict(facts), indent=1, default=str))
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in heads)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Inference report</title>\n'
        f"<style>{STYLE}</style></head><body>\n<h1>Inference report</h1>\n"
        f'<p class="counts">{counts}<span><b>{facts.get("seconds", "")}</b>seconds</span></p>\n'
        f"<details><summary>Version, weights and settings</summary><pre>{described}</pre></details>\n"
        + (f"<p>{html.escape(word)}</p>\n" if word else "")
        + '<input type="search" placeholder="Show rows that contain ..." aria-label="Show rows that contain">\n'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>\n"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def shown_rows(outcomes: Sequence[Outcome]) -> tuple[list[int], str]:
    """Which images a page shows, failed ones first, then those with warnings, then the others; ``ROWS`` at most.

    Returns:
        Their indices; and a sentence on what is left out, or nothing.
    """
    failed: list[int] = []
    warned: list[int] = []
    others: list[int] = []
    for index, outcome in enumerate(outcomes):
        (failed if outcome.status == FAILED else warned if outcome.warnings else others).append(index)
    first = failed + warned
    room = ROWS - len(first)
    if len(others) <= room:
        return first + others, ""
    if room <= 0:
        return first[:ROWS], f"The first {ROWS} of {len(outcomes)} images, {ORDER}; report.csv has all."
    step = -(-len(others) // room)
    sample = others[::step]
    word = f"{len(first) + len(sample)} of {len(outcomes)} images: all that failed or have warnings, and one in {step} "
    return first + sample, word + "of the others; report.csv has all."


def _row(outcome: Outcome, labels: Mapping[int, str], pictured: bool, shown: bool) -> str:
    name, words = html.escape(printable(outcome.name)), html.escape(outcome.reason)
    words += "".join(f'<div class="warning">{html.escape(warning)}</div>' for warning in outcome.warnings)
    volumes = "".join(_volume(outcome.volumes_ml.get(name)) for name in labels.values())
    seconds = sum(outcome.seconds.get(name, 0) for name in ("reading", "network"))
    picture = ""
    if pictured:
        image = f'<img loading="lazy" alt="" src="data:image/jpeg;base64,{outcome.thumbnail}">'
        picture = f"<td>{image if outcome.thumbnail and shown else ''}</td>"
    failed = ' class="failed"' if outcome.status == FAILED else ""
    return (
        f'<tr{failed}><td class="file">{name}</td><td class="status">{outcome.status}</td>'
        f'<td>{words}</td>{volumes}<td class="number" data-value="{seconds}">{seconds:.2f}</td>{picture}</tr>'
    )


def _volume(volume: float | list[float] | None) -> str:
    """A field of one volume, or of several of an image with a fourth axis, by which the first one sorts."""
    each = [] if volume is None else volume if isinstance(volume, list) else [volume]
    text = "; ".join(f"{v:.2f}" for v in each)
    return f'<td class="number" data-value="{each[0]}">{text}</td>' if each else "<td></td>"
