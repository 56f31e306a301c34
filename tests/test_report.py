"""tnn-report: a page that needs nothing else, pictures, galleries and model cards."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from cli_checks import refused, succeeded
from conftest import run_cli

import tnn_robust as tr
from tnn_robust.base.choices import FIGURE
from tnn_robust.base.files import require_result_file
from tnn_robust.evaluation import masking, masking_model
from tnn_robust.evaluation.results import Check
from tnn_robust.reporting import saved as saved_reports
from tnn_robust.reporting import views, words
from tnn_robust.reporting.html import page, section_of

VOID = {"meta", "br", "link", "img", "input", "hr"}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Tags(HTMLParser):
    """Every tag that is opened is closed, in order; what it says and links to is kept."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        places = [v for k, v in found.items() if k.endswith(("src", "href"))]
        self.links += [v for v in places if not v.startswith(("#", "data:image/png;base64,"))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture(scope="module")
def saved(digits_run, tmp_path_factory):
    """A report, its adversarial examples, and a curve of the same network."""
    folder = tmp_path_factory.mktemp("saved")
    report, points, curve = folder / "r.json", folder / "adv.safetensors", folder / "c.json"
    options = ("--n", 40, "--eps", "0.2", "--attack", "fgsm")
    succeeded(run_cli("attack", digits_run, *options, "--json", report, "--save-adv", points))
    swept = ("--curve", "--n", 40, "--eps", "0,0.1", "--steps", 3, "--json", curve)
    succeeded(run_cli("attack", digits_run, *swept))
    return folder


def test_a_page_needs_nothing_else_and_says_what_the_tables_say(saved, tmp_path):
    out = tmp_path / "page.html"
    files = [saved / name for name in ("r.json", "c.json", "adv.safetensors")]
    assert succeeded(run_cli("report", *files, "--html", out)).startswith("Saved in")
    text = out.read_text()
    found = Tags(text)
    assert not found.links and "@import" not in text and "url(" not in text.replace("url(#", "")
    said = " ".join(" ".join(found.said).split())
    report = tr.load_report(saved / "r.json")
    assert f"{100 * report.worst_case.test.accuracy:.1f} % stand against the attack fgsm" in said
    for title in (
        "Adversarial examples",
        "Singular values of the layers",
        "Robustness against eps",
    ):
        assert title in said
    assert report.model["digest"] in said and report.dataset["digest"] in said
    succeeded(run_cli("report", *files, "--html", out))  # its own earlier page
    assert out.read_text() == text, "the same reports are the same page"


def test_without_an_option_the_tables_are_printed(saved):
    printed = succeeded(run_cli("report", saved / "r.json"))
    assert "Adversarial generalization gap (AGP), test minus train" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_what_a_report_says_cannot_become_markup(saved):
    value = json.loads((saved / "r.json").read_text())
    evil = '<img src=x onerror="alert(1)">'
    value["dataset"]["name"] = value["dataset"]["notes"][0] = evil
    file = saved / "evil.json"
    file.write_text(json.dumps(value))
    text = page([section_of(tr.load_report(file), file)], evil)
    assert evil not in text.replace("&lt;", "")
    assert "<img" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


def test_each_picture_alone(saved, tmp_path):
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        out = tmp_path / f"gallery.{kind}"
        options = (saved / "adv.safetensors", "--picture", "gallery", "--figure", out)
        succeeded(run_cli("report", *options))
        assert out.read_bytes().startswith(start)
        require_result_file(out, FIGURE, overwrite=False)  # its own, replaced
        out.write_bytes(start + b" of the user")
        refused(run_cli("report", *options), "--overwrite")


def test_an_attack_draws_its_gallery_and_says_where_nothing_broke(digits_run, tmp_path):
    out, options = tmp_path / "g.svg", ("--attack", "fgsm", "--n", 30)
    printed = succeeded(run_cli("attack", digits_run, *options, "--eps", "0.3", "--gallery", out))
    assert "Gallery in" in printed and ", taken for " in out.read_text()
    none = tmp_path / "none.svg"
    printed = succeeded(run_cli("attack", digits_run, *options, "--eps", "0", "--gallery", none))
    assert "There is no gallery" in printed and not none.exists()
    refused(run_cli("attack", digits_run, *options, "--gallery", tmp_path / "g.jpg"), "--gallery")
    curve = ("--curve", "--eps", "0,0.1", "--gallery", out)
    refused(run_cli("attack", digits_run, *curve), "--gallery is of the report")


def test_the_bands_that_changed_most_are_named():
    import torch

    from tnn_robust.reporting.gallery import _most_changed

    added = torch.zeros(9, 1)
    added[[1, 4, 7], 0] = torch.tensor([0.2, -0.3, 0.1])
    assert _most_changed(added) == ", most at 2, 5, 8"
    assert _most_changed(torch.zeros(9, 2)) == "" == _most_changed(torch.zeros(3, 1))


def test_a_card_has_the_figures_and_the_origin(saved, tmp_path):
    card = tmp_path / "card.md"
    succeeded(run_cli("report", saved / "r.json", "--card", card))
    text, report = card.read_text(), tr.load_report(saved / "r.json")
    assert report.model["digest"] in text and "| fgsm | linf 0.2 |" in text
    succeeded(run_cli("report", saved / "r.json", "--card", card))
    card.write_text("mine")
    refused(run_cli("report", saved / "r.json", "--card", card), "--overwrite")


def test_what_it_refuses(saved, tmp_path):
    report = saved / "r.json"
    refused(run_cli("report", tmp_path / "none.json"), "none.json")
    refused(run_cli("report", report, "--figure", "x.jpg"), ".png, .svg or .pdf")
    refused(run_cli("report", report, "--picture", "curve"), "give a file")
    picture = ("--picture", "acuracy", "--figure", tmp_path / "x.png")
    refused(run_cli("report", report, *picture), "accuracy")
    (tmp_path / "bad.json").write_text('{"kind": "attack-report"}')
    refused(run_cli("report", tmp_path / "bad.json", "--html", tmp_path / "p.html"), "bad.json")
    assert not (tmp_path / "p.html").exists()


def test_every_kind_of_report_can_be_shown():
    assert (
        set(views._VIEWS) == set(get_args(saved_reports.Report)) == {*saved_reports._KINDS.values()}
    )


def test_every_masking_check_has_words_for_a_newcomer():
    source = "".join(Path(one.__file__).read_text() for one in (masking, masking_model))
    names = set(re.findall(r'Check\(\s*"([a-z ]+)"', source)) | set(masking._RIVALS)
    assert len(names) >= 12 and names <= set(words.CHECKS)
    warned = Check("noise", 0.5, 0.01, "half of them fell")
    assert (
        len(words.check_words(warned)) == 3 and "half of them fell" in words.check_words(warned)[1]
    )


def test_series_and_spectra_are_lines(toy_ts, tmp_path):
    import torch

    from tnn_robust.data.catalogue import load_dataset
    from tnn_robust.data.spec import DataSpec
    from tnn_robust.evaluation.rows import Points
    from tnn_robust.reporting.gallery import gallery_of

    data = load_dataset(DataSpec(toy_ts))
    n = len(data.test.y)
    x_adv = (data.test.x + 0.1).clamp(0, 1)
    broken = Points(
        x_adv=x_adv,
        y=data.test.y,
        predictions=1 - data.test.y,
        indices=torch.arange(n),
        success=torch.ones(n, dtype=torch.bool),
        vanished=torch.zeros(n, dtype=torch.bool),
    )
    found = gallery_of(data, broken)
    assert "what was added" in found.words and "Left:" in found.words
    assert ">step<" in found.svg()
    assert gallery_of(data, broken._replace(success=torch.zeros(n, dtype=torch.bool))) is None


@pytest.mark.skipif(BROWSER is None, reason="no headless browser (chromium) is installed")
def test_a_browser_shows_it_sorts_it_and_needs_400_pixels(saved, tmp_path):
    out = tmp_path / "page.html"
    succeeded(run_cli("report", saved / "r.json", "--html", out))
    probe = """<script>
    const button = document.querySelectorAll("table.sortable")[0].querySelectorAll("th button")[2];
    button.click();
    const first = document.querySelector("table.sortable tbody tr td").innerText;
    document.title = [document.documentElement.scrollWidth <= innerWidth, first].join("|");
    </script>"""
    out.write_text(out.read_text().replace("</body>", probe + "</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,900", "--dump-dom"]
    shown = subprocess.run(
        [*command, out.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    fits, first = re.search(r"<title>(.*?)</title>", shown).group(1).split("|")
    report = tr.load_report(saved / "r.json")
    rows = {"clean": report.worst_case.train.clean_accuracy}
    rows |= {row.name: row.train.accuracy for row in (*report.attacks, report.worst_case)}
    assert fits == "true" and rows[first] == min(rows.values())
    assert np.isfinite(list(rows.values())).all()
