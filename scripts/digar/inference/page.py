"""The page of a folder run: one file without any link to the network, a table that can be sorted and searched."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from digar.inference.journal import FAILED, Outcome

PICTURE_BYTES = 12_000_000  # of all pictures together; later rows go without

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


def report_page(facts: Mapping[str, Any], outcomes: Sequence[Outcome], labels: Mapping[int, str]) -> str:
    """The report as HTML.

    Args:
        facts: of the run; ``images``, ``done``, ``failed``, ``not_run`` and ``seconds`` stand at the top.
        outcomes: a row each; pictures are left out where all of them together are larger than ``PICTURE_BYTES``.
        labels: value in the masks to name.
    """
    pictured = any(outcome.thumbnail for outcome in outcomes)
    heads = ["file", "status", "reason and warnings", *(f"{name}, ml" for name in labels.values()), "seconds"]
    heads += ["sagittal, coronal, axial"] if pictured else []
    rows, room = [], PICTURE_BYTES
    for outcome in outcomes:
        shown = len(outcome.thumbnail) <= room
        room -= len(outcome.thumbnail) if shown else 0
        rows.append(_row(outcome, labels, pictured, shown))
    counts = "".join(
        f"<span><b>{facts[name]}</b>{name.replace('_', ' ')}</span>"
        for name in ("images", "done", "failed", "not_run")
        if name in facts
    )
    described = html.escape(json.dumps(dict(facts), indent=1, default=str))
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in heads)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Inference report</title>\n'
        f"<style>{STYLE}</style></head><body>\n<h1>Inference report</h1>\n"
        f'<p class="counts">{counts}<span><b>{facts.get("seconds", "")}</b>seconds</span></p>\n'
        f"<details><summary>Version, weights and settings</summary><pre>{described}</pre></details>\n"
        f'<input type="search" placeholder="Show rows that contain ..." aria-label="Show rows that contain">\n'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>\n"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _row(outcome: Outcome, labels: Mapping[int, str], pictured: bool, shown: bool) -> str:
    words = html.escape(outcome.reason)
    words += "".join(f'<div class="warning">{html.escape(warning)}</div>' for warning in outcome.warnings)
    volumes = "".join(
        f'<td class="number" data-value="{v}">{v:.2f}</td>' if v is not None else "<td></td>"
        for v in (outcome.volumes_ml.get(name) for name in labels.values())
    )
    seconds = sum(outcome.seconds.get(name, 0) for name in ("reading", "network"))
    picture = ""
    if pictured:
        image = f'<img loading="lazy" alt="" src="data:image/jpeg;base64,{outcome.thumbnail}">'
        picture = f"<td>{image if outcome.thumbnail and shown else ''}</td>"
    failed = ' class="failed"' if outcome.status == FAILED else ""
    return (
        f'<tr{failed}><td class="file">{html.escape(outcome.name)}</td><td class="status">{outcome.status}</td>'
        f'<td>{words}</td>{volumes}<td class="number" data-value="{seconds}">{seconds:.2f}</td>{picture}</tr>'
    )
