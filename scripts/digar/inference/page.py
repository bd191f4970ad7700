"""The page of a folder run: one file without any link to the network, a table that can be sorted and searched."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.colors import to_hex

from digar.inference.journal import FAILED, Outcome
from digar.volumes.files import printable
from digar.volumes.pictures import label_colour

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
th, td { text-align: left; padding: .3rem .4rem; border-bottom: 1px solid #dfe3e8; vertical-align: top; }
th { position: sticky; top: 0; background: #eef1f5; cursor: pointer; white-space: nowrap; user-select: none; }
th[aria-sort=ascending]::after { content: " \\25b2"; } th[aria-sort=descending]::after { content: " \\25bc"; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.file { overflow-wrap: anywhere; min-width: 8rem; }
tr.failed td { background: #fdf0ef; } .failed .status { color: #a3180f; font-weight: 600; }
.warning { color: #8a5a00; } tr.warned .status { color: #8a5a00; }
th.label { white-space: normal; hyphens: auto; min-width: 4rem; font-size: 12px; } td.words { min-width: 11rem; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border: 1px solid #555; }
.folders { margin: .2rem 0; word-break: break-all; } .use, .series { color: #5a6472; }
img { display: block; height: 72px; cursor: zoom-in; }
img.large { position: fixed; inset: 0; margin: auto; height: auto; width: min(96vw, 1320px); cursor: zoom-out;
  z-index: 9; box-shadow: 0 0 0 100vmax rgba(0, 0, 0, .8); image-rendering: pixelated; }
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
body.addEventListener("click", event => {
  if (event.target.tagName === "IMG") event.target.classList.toggle("large");
});
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
    plain = "<th scope=col>{}</th>".format
    head = "".join(map(plain, ("file", "status", "reason and warnings")))
    head += "".join(
        f"<th scope=col class=label>{_key(value)}{html.escape(name)}, ml</th>" for value, name in labels.items()
    )
    head += plain("seconds") + (plain("sagittal, coronal, axial") if pictured else "")
    counts = "".join(
        f"<span><b>{facts[name]}</b>{name.replace('_', ' ')}</span>"
        for name in ("images", "done", "with_warnings", "failed", "not_run")
        if name in facts
    )
    described = html.escape(json.dumps(dict(facts), indent=1, default=str))
    before = facts.get("done_before")
    resumed = f"<p>This run went on where earlier ones stopped: {before} images were finished before it.</p>\n"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Inference report</title>\n'
        f"<style>{STYLE}</style></head><body>\n<h1>Inference report</h1>\n"
        f'<p class="counts">{counts}<span><b>{facts.get("seconds", "")}</b>seconds</span></p>\n'
        f'<p class="folders">Images: {_folder(facts, "input")}<br>Masks: {_folder(facts, "output")}</p>\n'
        + (resumed if before else "")
        + '<p class="use">Research only: not a medical device. Look at the masks before you use them'
        + (" (a click enlarges a picture; front or right is on the left).</p>\n" if pictured else ".</p>\n")
        + f"<details><summary>Version, weights and settings</summary><pre>{described}</pre></details>\n"
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
    if outcome.series:
        name += f'<div class="series">{html.escape(printable(series_text(outcome)))}</div>'
    picture = ""
    if pictured:
        image = f'<img loading="lazy" alt="" src="data:image/jpeg;base64,{outcome.thumbnail}">'
        picture = f"<td>{image if outcome.thumbnail and shown else ''}</td>"
    kind = ' class="failed"' if outcome.status == FAILED else ' class="warned"' if outcome.warnings else ""
    status = outcome.status + (", with warnings" if outcome.warnings and outcome.status != FAILED else "")
    return (
        f'<tr{kind}><td class="file">{name}</td><td class="status">{status}</td>'
        f'<td class="words">{words}</td>{volumes}<td class="number" data-value="{seconds}">{seconds:.2f}</td>'
        f"{picture}</tr>"
    )


def series_text(outcome: Outcome) -> str:
    """What people call a DICOM series; nothing for other images."""
    if not outcome.series:
        return ""
    said = [outcome.series.get(key, "") for key in ("SeriesDescription", "SeriesNumber", "Modality")]
    return ", ".join(word for word in (said[0], f"series {said[1]}" if said[1] else "", said[2]) if word)


def _volume(volume: float | list[float] | None) -> str:
    """A field of one volume, or of several of an image with a fourth axis, by which the first one sorts."""
    each = [] if volume is None else volume if isinstance(volume, list) else [volume]
    text = "; ".join(f"{v:.2f}" for v in each)
    return f'<td class="number" data-value="{each[0]}">{text}</td>' if each else "<td></td>"


def _key(value: int) -> str:
    """A patch of a label's colour."""
    return f'<span class="key" style="background: {to_hex(label_colour(value))}"></span>'


def _folder(facts: Mapping[str, Any], name: str) -> str:
    return html.escape(printable(str(facts.get(name, ""))))
