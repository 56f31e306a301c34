"""Run the documents' sessions and put what they printed into the documents.

    TNN_DATA=FOLDER python scripts/readme_session.py [README.md] [docs/bounds.md]

That of docs/bounds.md is on real MNIST.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- session: scripts/readme_session.py -->\n", "<!-- end of session -->\n"
SESSIONS = {
    "README.md": (
        "tnn-train --dataset digits --width 32 --epochs 30 --batch-size 32 --eps 0.1 --out demo",
        "tnn-attack demo --eps 0.03 --certify --json r.json",
        "tnn-report r.json --html report.html --card card.md",
    ),
    "docs/bounds.md": (
        """tnn-train --dataset mnist --classes 3,7 --n-train 2000 --layers 3 --width 28 \\
    --rank 4 --attack fgsm --eps 8/255 --norm-bound 10 --epochs 5 --out runs/a""",
        "tnn-bound runs/a",
    ),
}


def main() -> None:
    for name in sys.argv[1:] or SESSIONS:
        renew(ROOT / name, SESSIONS[name])


def renew(document: Path, commands: tuple[str, ...]) -> None:
    binaries = Path(sys.executable).parent
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            done = subprocess.run(
                f"{binaries}/{command}",
                shell=True,
                cwd=folder,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            lines = [line.rstrip() for line in done.stdout.splitlines()]
            shown.append(f"$ {command}\n" + "\n".join(lines).strip() + "\n")
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    session = "\n".join(shown)
    document.write_text(f"{before}{BEGIN}\n```console\n{session}```\n\n{END}{after}")


if __name__ == "__main__":
    main()
