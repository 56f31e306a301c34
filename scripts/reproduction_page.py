"""Put what the reproductions found into docs/reproduction/README.md.

    python scripts/reproduction_page.py

Reads records.jsonl of every directory of docs/reproduction that has one, writes its table,
verdicts and figures anew, and replaces what stands between the page's markers. Another
folder in place of docs/reproduction (`make science`) gets a page of its own.
"""

import math
import sys
from pathlib import Path

from tnn_robust.experiments.fits import interval
from tnn_robust.experiments.gap_verdicts import ratios
from tnn_robust.experiments.judging import gaps, paired
from tnn_robust.experiments.reproduce import read_records
from tnn_robust.experiments.results import CellRecord, Verdict
from tnn_robust.experiments.studies import read_study
from tnn_robust.experiments.study_verdicts import study_verdicts
from tnn_robust.experiments.verdicts import verdicts
from tnn_robust.reporting.reproduction import deliver, verdict_lines
from tnn_robust.reporting.studies import FIGURE, deliver_study

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reproduction"
BEGIN, END = "<!-- results: scripts/reproduction_page.py -->\n", "<!-- end of results -->\n"
FIGURES = {"a1": "agp.png"}  # of others the trajectory, and the means of the flow


def main(pages: Path = PAGES) -> None:
    details, claims = [], []
    found = {path.parent for path in pages.glob("*/records.jsonl")}
    for folder in sorted(one for one in found if one.name not in _APART):
        text, rows = study(folder) if is_study(folder) else experiment(folder)
        details.append(text)
        claims += rows
    head = "| claim | | verdict | effect | from | minutes |\n" + "| --- " * 6 + "|\n"
    page = pages / "README.md"
    if not page.is_file():
        page.write_text(f"# Results\n\n{BEGIN}{END}")
    text = head + "".join(sorted(claims)) + "\n" + "\n".join(details)
    replace(page, text + "\n" + apart(pages))


# What differs from `a1` in one thing alone, and in what; the same seeds have the same examples.
_APART = {
    "a1-unbounded": "norm bound 1e5, which never binds, for 10",
    "a1-batch-30": "batches of 30 for 50",
    "a1-batch-100": "batches of 100 for 50",
    "a1-fan-in": "initial weights with a fan-in of d c for d",
}


def apart(pages: Path) -> str:
    """What each difference from an independent implementation does to A.1's gap."""
    if not (pages / "a1" / "records.jsonl").is_file():
        return ""
    base = gaps(read_records(pages / "a1"))
    rows = []
    for name, words in _APART.items():
        if not (pages / name / "records.jsonl").is_file():
            continue
        for arm, sizes in gaps(read_records(pages / name)).items():
            values = paired(base[arm], sizes)
            mean = math.fsum(values) / len(values)
            low, high = interval(values) or (mean, mean)
            level = [base[arm][n][seed] for n in sizes for seed in sizes[n]]
            share = mean / (math.fsum(level) / len(level))
            rows.append(
                f"| {words} | {arm} | {mean:+.4f} ({low:+.4f} to {high:+.4f}) | {share:+.0%} |\n"
            )
    head = "| difference | arm | change of the AGP in nats | of it |\n" + "| --- " * 4 + "|\n"
    return f"### What moves A.1's gap\n\n{head}{''.join(rows)}\n" if rows else ""


def is_study(folder: Path) -> bool:
    return '"tnn-robust.study"' in (folder / "records.jsonl").read_text().split("\n", 1)[0]


def experiment(folder: Path) -> tuple[str, list[str]]:
    """What a page says of one of the paper's experiments, and its rows of the first table."""
    records = read_records(folder)
    found, compared = verdicts(records), ratios(records)
    deliver(folder, records, found, compared)
    departures = records[0].cell["departures"]
    how = ", as published" if len(departures) > 5 else "".join(f", {one}" for one in departures)
    seconds = math.fsum(record.seconds for record in records)
    rows = [claim(folder.name + how, folder.name, verdict, seconds) for verdict in found]
    return detail(folder.name, records, verdict_lines(found, compared)), rows


def study(folder: Path) -> tuple[str, list[str]]:
    """The same of rank, transform and twin."""
    records = read_study(folder)
    found = study_verdicts(records)
    deliver_study(folder, records, found)
    seconds = math.fsum(record.seconds for record in records)
    networks = _many(sum(len(record.rows) for record in records), "network")
    text = (
        f"### {folder.name}\n\n{networks}, {len(records[0].cell['seeds'])} seeds; "
        f"{seconds / 60:.0f} minutes of one process. Every number: "
        f"[{folder.name}/table.md]({folder.name}/table.md).\n\n"
        f"![{folder.name}]({folder.name}/{FIGURE})\n\n"
    )
    lines = "".join(f"- {line}\n" for line in verdict_lines(found, ()))
    return text + lines, [claim(folder.name, folder.name, one, seconds) for one in found]


def scale(records: list[CellRecord]) -> str:
    """What was trained, as the records have it."""
    seeds = {len(record.seeds) for record in records}
    sizes = sorted({record.cell["n"] for record in records if record.cell["n"]})
    arms = list(dict.fromkeys(record.cell["arm"] for record in records))
    networks = sum(len(record.seeds) for record in records)
    parts = [f"{_many(networks, 'network')} ({', '.join(arms)})"]
    parts += [f"N = {sizes[0]} to {sizes[-1]} in {len(sizes)} sizes"] if sizes else []
    parts += [_many(count, "seed") for count in sorted(seeds)]
    parts += [_many(count, "epoch") for count in sorted({r.points[-1].epoch for r in records})]
    hours = math.fsum(record.seconds for record in records) / 3600
    return "; ".join(parts) + f"; {hours:.1f} hours of one process"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def claim(how: str, name: str, verdict: Verdict, seconds: float) -> str:
    """A row of the first table: the finding that decided, or is nearest to deciding."""
    judged = [f for f in verdict.findings if f.verdict] or list(verdict.findings)
    telling = [f for f in judged if f.verdict == verdict.verdict] or judged
    effect = "-"
    if telling:
        one = telling[0]
        ends = "" if one.interval is None else " ({:.3g} to {:.3g})".format(*one.interval)
        effect = f"{one.what}: {one.value:.3g}{ends}"
        effect += f"; {one.needed} would decide it" if one.needed else ""
    return (
        f"| {verdict.claim} | {verdict.text} | **{verdict.verdict}** | {effect} "
        f"| [{how}]({name}/table.md) | {seconds / 60:.0f} |\n"
    )


def detail(name: str, records: list[CellRecord], lines: list[str]) -> str:
    figures = [FIGURES.get(records[0].cell["experiment"], "trajectory.png")]
    if "harmonic_mean_bound" in records[0].last:
        figures.append("mean.png")
    text = f"### {name}\n\n{scale(records)}. Every number: [{name}/table.md]({name}/table.md).\n\n"
    text += "".join(f"![{name}]({name}/{figure})\n\n" for figure in figures)
    return text + "".join(f"- {line}\n" for line in lines)


def replace(document: Path, text: str) -> None:
    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGES)
