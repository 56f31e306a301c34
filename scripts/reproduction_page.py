"""Put what the reproductions found into docs/reproduction/README.md.

    python scripts/reproduction_page.py

Reads records.jsonl of every directory of docs/reproduction that has one, writes its table,
verdicts and figures anew, and replaces what stands between the page's markers.
"""

import math
from pathlib import Path

from tnn_robust.experiments.gap_verdicts import ratios
from tnn_robust.experiments.reproduce import read_records
from tnn_robust.experiments.results import CellRecord, Verdict
from tnn_robust.experiments.verdicts import verdicts
from tnn_robust.reporting.reproduction import deliver, verdict_lines

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reproduction"
BEGIN, END = "<!-- results: scripts/reproduction_page.py -->\n", "<!-- end of results -->\n"
FIGURES = {"a1": "agp.png", "a2": "trajectory.png", "a3": "trajectory.png"}


def main() -> None:
    details, claims = [], []
    for folder in sorted(path.parent for path in PAGES.glob("*/records.jsonl")):
        records = read_records(folder)
        found, compared = verdicts(records), ratios(records)
        deliver(folder, records, found, compared)
        details.append(detail(folder.name, records, verdict_lines(found, compared)))
        claims += [claim(folder.name, records, verdict) for verdict in found]
    table = "| claim | | verdict | from |\n| --- | --- | --- | --- |\n" + "".join(sorted(claims))
    replace(PAGES / "README.md", table + "\n" + "\n".join(details))


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


def claim(name: str, records: list[CellRecord], verdict: Verdict) -> str:
    departures = records[0].cell["departures"]
    how = "corrected" if not departures else "as published" if len(departures) > 5 else departures
    text = f"| {verdict.claim} | {verdict.text} | **{verdict.verdict}** "
    return text + f"| [{name}]({name}/table.md), {how} |\n"


def detail(name: str, records: list[CellRecord], lines: list[str]) -> str:
    figure = FIGURES[records[0].cell["experiment"]]
    text = f"### {name}\n\n{scale(records)}. Every number: [{name}/table.md]({name}/table.md).\n\n"
    return text + f"![{name}]({name}/{figure})\n\n" + "".join(f"- {line}\n" for line in lines)


def replace(document: Path, text: str) -> None:
    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
