"""A.1 of the paper in full: 2 ranks, 10 sizes, 20 seeds, trained and evaluated, by the clock.

    python scripts/bench_a1.py [--smoke]

Takes a quarter of an hour on two cores and needs MNIST; --smoke runs a tiny plan on digits,
to see that the script runs. Writes bench_a1.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import verdict

TARGET = 600.0  # seconds, on two cores
SMOKE = "--smoke" in sys.argv[1:]
FULL, TINY = ("--ranks", "4,28"), ("--scale", "smoke", "--dataset", "digits")
_RUN = "from tnn_robust_cli.reproduce import main; main()"


def seconds(*options: str) -> float | str:
    """Those of the command, start-up and records included; else why there are none."""
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, "-c", _RUN, "a1", *options, "--out", str(Path(out) / "a1")],
            check=False,
            capture_output=True,
            text=True,
        )
        took = time.perf_counter() - began
    return took if ran.returncode == 0 else ran.stderr.strip().split("\n")[-1]


def main() -> None:
    jobs = min(2, os.cpu_count() or 1)
    found = seconds(*(TINY if SMOKE else FULL), "--device", "cpu", "--jobs", str(jobs))
    row = {"what": "A.1 in full", "jobs": jobs, "target": TARGET, "seconds": None}
    if isinstance(found, str):
        print(f"A.1 in full: not measured, target {TARGET}: {found}")
    else:
        row |= {"seconds": found, "reached": found <= TARGET}
        words = "no verdict of a smoke run" if SMOKE else verdict(found <= TARGET)
        print(f"A.1 in full: {found:.0f} s, {jobs} processes, target {TARGET}: {words}")
    Path("bench_a1-smoke.json" if SMOKE else "bench_a1.json").write_text(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
