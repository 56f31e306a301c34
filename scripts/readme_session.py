"""Run the documents' sessions and put what they printed into the documents.

    TNN_DATA=FOLDER python scripts/readme_session.py [README.md] [docs/bounds.md]

That of docs/bounds.md is on real MNIST. Of README's some tables and notes are left out.
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
        'tnn-report r.json --html report.html --title "Digits, trained by PGD"',
    ),
    "docs/bounds.md": (
        """tnn-train --dataset mnist --classes 3,7 --n-train 2000 --layers 3 --width 28 \\
    --rank 4 --attack fgsm --eps 8/255 --norm-bound 10 --epochs 5 --out runs/a""",
        "tnn-bound runs/a",
    ),
}
# Where tables and notes begin that a document leaves out, up to the next empty line.
LEFT_OUT = {"README.md": ("Risk (mean loss)", "Suite quick", "apgd, linf")}


def main() -> None:
    for name in sys.argv[1:] or SESSIONS:
        renew(ROOT / name, SESSIONS[name], LEFT_OUT.get(name, ()))


def shortened(printed: str, left_out: tuple[str, ...]) -> str:
    """What a command printed, without the blocks of lines that begin so."""
    blocks = printed.split("\n\n")
    return "\n\n".join(one for one in blocks if not one.startswith(left_out))


def renew(document: Path, commands: tuple[str, ...], left_out: tuple[str, ...]) -> None:
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
            printed = shortened("\n".join(lines).strip(), left_out)
            shown.append(f"$ {command}\n{printed}\n")
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    session = "\n".join(shown)
    document.write_text(f"{before}{BEGIN}\n```console\n{session}```\n\n{END}{after}")


if __name__ == "__main__":
    main()
