"""Train the networks that ship with the package, measure them, and write the zoo's files.

    TNN_DATA=... python scripts/train_zoo.py mnist-linf-0.1      # one network, minutes each
    python scripts/train_zoo.py --table                          # docs/zoo.md from the index

A network is trained in stages of constant learning rate on one CPU thread, so that the same
torch gives the same weights. Then the suite `quick` attacks it and CROWN certifies it on
EXAMPLES examples of each part; the index, the checkpoint, the report and the card are written.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import tnn_robust as tr
from tnn_robust.attacks.attack import Attack
from tnn_robust.base.files import write_bytes, write_json
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.models.checkpoint import Header, save_checkpoint
from tnn_robust.models.network import TNN
from tnn_robust.reporting.card import card_text
from tnn_robust.reporting.html import section_of
from tnn_robust.reporting.tables import markdown
from tnn_robust.training.certified_settings import CertifiedSettings
from tnn_robust.zoo.shelf import FILES, INDEX, ZooNetwork
from tnn_robust.zoo.table import zoo_table

DOCS = Path(__file__).resolve().parent.parent / "docs" / "zoo.md"
EXAMPLES = 300
MOST_BYTES = 1_500_000


@dataclass(frozen=True)
class Recipe:
    """How a network is made. stages: keywords of `tr.train`, in turn; after: what is done to the
    network then, in `words`; start: a network of the zoo to begin with, whose stages these are."""

    about: str
    data: dict[str, Any]
    network: dict[str, Any]
    threat: tr.Threat
    stages: tuple[dict[str, Any], ...]
    after: Callable[[TNN], TNN] = lambda model: model
    words: str = ""
    start: str | None = None
    n: int = EXAMPLES
    seed: int = field(default=0)


def ibp(eps: float, epochs: int, *, ramp: int, lr: float = 1e-3) -> tuple[dict[str, Any], ...]:
    """IBP with a ramp, then the last sixth of it at a fifth and a twentieth of the rate."""
    fixed = CertifiedSettings(eps=eps, regularise=0.0, initialise=False)
    tail = max(1, epochs // 8)
    return (
        {"certified": CertifiedSettings(eps=eps, start=3, ramp=ramp), "epochs": epochs, "lr": lr},
        {"certified": fixed, "epochs": tail, "lr": lr / 4},
        {"certified": fixed, "epochs": tail, "lr": lr / 20},
    )


def margins(eps: float, epochs: int, lr: float = 3e-3) -> tuple[dict[str, Any], ...]:
    """Lipschitz margins at a radius, the end at lower rates."""
    settings = CertifiedSettings("lipschitz", norm="l2", eps=eps)
    tail = max(1, epochs // 5)
    return (
        {"certified": settings, "epochs": epochs, "lr": lr},
        {"certified": settings, "epochs": tail, "lr": lr / 5},
        {"certified": settings, "epochs": tail, "lr": lr / 25},
    )


MNIST = {"dataset": "mnist", "n_train": 10_000}
DENSE = {"layers": 3, "width": 28}
WITH_BIAS = {**DENSE, "bias": True}
PGD = {"attack": tr.attacks.PGD("linf", 0.1, steps=7), "epochs": 8, "lr": 2e-3}
MOTIONS = {"dataset": "ts:BasicMotions_TRAIN.ts,BasicMotions_TEST.ts"}
ORTHOGONAL = {**DENSE, "activation": "maxmin", "orthogonal": True}

RECIPES = {
    "mnist-plain": Recipe(
        "A t-NN of the paper trained on clean digits: accurate, and broken at once.",
        MNIST, DENSE, tr.Threat("linf", 0.1), ({"epochs": 5, "lr": 2e-3},),
    ),
    "mnist-pgd-0.1": Recipe(
        "The same network trained against PGD: it resists attacks, and certifies little.",
        MNIST, DENSE, tr.Threat("linf", 0.1), (PGD,),
    ),
    "mnist-pgd-0.1-rank-6": Recipe(
        "A network trained against PGD, cut to tubal rank 6 by the t-SVD.",
        MNIST, DENSE, tr.Threat("linf", 0.1), (PGD,),
        after=lambda model: tr.compress(model, rank=6).model,
        words="cut by `tr.compress(model, rank=6)`",
        start="mnist-pgd-0.1",
    ),
    "mnist-linf-0.1": Recipe(
        "Trained by interval bounds, with biases: nearly all that survives is certified.",
        MNIST, WITH_BIAS, tr.Threat("linf", 0.1), ibp(0.1, 18, ramp=12, lr=1.5e-3),
    ),
    "mnist-linf-0.1-rank-8": Recipe(
        "Trained by interval bounds at tubal rank 8.",
        MNIST, {**WITH_BIAS, "rank": 8}, tr.Threat("linf", 0.1), ibp(0.1, 18, ramp=12, lr=1.5e-3),
    ),
    "mnist-linf-0.3": Recipe(
        "Trained by interval bounds at the large radius.",
        MNIST, WITH_BIAS, tr.Threat("linf", 0.3), ibp(0.3, 18, ramp=13, lr=1.5e-3),
    ),
    "mnist-l2-1.58": Recipe(
        "Orthogonal t-layers with MaxMin, trained by Lipschitz margins: 1-Lipschitz in l2.",
        MNIST, ORTHOGONAL, tr.Threat("l2", 1.58), margins(1.0, 12),
    ),
    "salinas-a-linf-0.02": Recipe(
        "Six crops from their spectra (Salinas-A, a blocked split), trained by interval bounds.",
        {"dataset": "salinas-a"}, {"layers": 2, "width": 4, "bias": True},
        tr.Threat("linf", 0.02), ibp(0.02, 16, ramp=8, lr=3e-3),
    ),
    "basic-motions-linf-0.02": Recipe(
        "Four motions from six accelerometer channels (BasicMotions), trained by interval bounds.",
        MOTIONS, {"layers": 2, "width": 24, "bias": True}, tr.Threat("linf", 0.02),
        ibp(0.02, 150, ramp=60, lr=2e-3), n=40,
    ),
    "digits-linf-0.05": Recipe(
        "The 8 x 8 digits of scikit-learn by interval bounds: needs no download, seconds to train.",
        {"dataset": "digits"}, {"layers": 2, "width": 24, "bias": True},
        tr.Threat("linf", 0.05), ibp(0.05, 60, ramp=20, lr=2e-3),
    ),
}  # fmt: skip


def tell(name: str) -> Callable[[tr.Progress], None]:
    """Each finished epoch on a line."""
    started = time.perf_counter()

    def show(progress: tr.Progress) -> None:
        if progress.found is not None:
            print(f"{name} {time.perf_counter() - started:.0f} s: {progress.text}", flush=True)

    return show


def made(name: str, recipe: Recipe, data: Dataset) -> TNN:
    """The trained network."""
    if recipe.start is not None:
        return recipe.after(tr.zoo.load(recipe.start))
    model = tr.TNN.for_data(data, **recipe.network, seed=recipe.seed)
    for stage in recipe.stages:
        tr.train(model, data, **{"batch_size": 100, **stage}, seed=recipe.seed, progress=tell(name))
    return recipe.after(model)


def header(name: str, recipe: Recipe, model: TNN, data: Dataset, seconds: float) -> Header:
    """What its checkpoint says: the data, and how it was trained, stage by stage."""
    stages = [{key: _plain(value) for key, value in one.items()} for one in recipe.stages]
    last = recipe.stages[-1]
    training = {
        "zoo": name,
        "stages": stages,
        "epochs": last["epochs"],
        "epochs_done": sum(one["epochs"] for one in recipe.stages),
        "batch_size": last.get("batch_size", 100),
        "lr": last["lr"],
        "optimizer": "adam",
        "loss": "cross-entropy",
        "attack": None if "attack" not in last else last["attack"].to_json(),
        "seconds": round(seconds),
    }
    return Header(model.architecture, describe_data(data), training, recipe.seed)


def _plain(value: Any) -> Any:
    if isinstance(value, CertifiedSettings):
        return vars(value)
    return value.to_json() if isinstance(value, Attack) else value


def train_one(name: str) -> None:
    """Train, measure and write one network of the zoo."""
    recipe = RECIPES[name]
    asked = dict(recipe.data)
    data = tr.load_data(asked.pop("dataset"), **asked)
    started = time.perf_counter()
    model = made(name, recipe, data)
    seconds = time.perf_counter() - started
    file = FILES / f"{name}.safetensors"
    digest = save_checkpoint(file, model, header(name, recipe, model, data, seconds))
    if (size := file.stat().st_size) > MOST_BYTES:
        raise SystemExit(f"{file} has {size} bytes, at most {MOST_BYTES} are shipped")
    found = tr.evaluate(
        model, data, suite="quick", threat=recipe.threat, n=recipe.n, certify=True, checks=False,
        progress=lambda progress: None,
    )  # fmt: skip
    found = replace(found, model={**found.model, "path": file.name, "digest": digest})
    found.save(FILES / f"{name}.json")
    command = f"python scripts/train_zoo.py {name}"
    write_bytes(FILES / f"{name}.md", card(name, recipe, found, command, seconds).encode())
    enter(line(name, recipe, model, found, command, digest))
    print(found)


def line(
    name: str, recipe: Recipe, model: TNN, found: AttackReport, command: str, digest: str
) -> ZooNetwork:
    """Its line in the index."""
    test, bound = found.worst_case.test, found.certified
    assert bound is not None
    sure = bound.parts["test"]
    said = ", ".join(f"{key} {value}" for key, value in recipe.data.items())
    return ZooNetwork(
        name=name,
        about=recipe.about,
        data=said.removeprefix("dataset "),
        threat=str(recipe.threat),
        command=command,
        digest=digest,
        parameters=model.parameter_count,
        clean=test.clean_accuracy,
        attacked=test.accuracy,
        certified=sure.certified / sure.n,
        n=test.n,
    )


def card(name: str, recipe: Recipe, found: AttackReport, command: str, seconds: float) -> str:
    """The model card: what it is, how to train it, and the report."""
    text = card_text([section_of(found, FILES / f"{name}.json")])
    steps = ", then ".join(f"{one['epochs']} epochs at lr {one['lr']:g}" for one in recipe.stages)
    trained = f"`{command}` ({steps}; {seconds:.0f} s on one busy CPU core)"
    how = [
        recipe.about,
        "",
        f"- trained by: {trained}" + (f", {recipe.words}" if recipe.words else ""),
        f"- load it: `tr.zoo.load({name!r})`, or `tnn zoo {name} --out DIR`",
        "",
    ]
    first, title, rest = text.split("\n", 2)
    return "\n".join([first, f"# Model card: {name}", "", *how, rest])


def enter(one: ZooNetwork) -> None:
    """Put a line into the index, in the order of the recipes."""
    lines = {old.name: old for old in (tr.zoo.list() if (FILES / INDEX).exists() else ())}
    lines[one.name] = one
    write_json(FILES / INDEX, [lines[name].to_json() for name in RECIPES if name in lines])


def table() -> None:
    """docs/zoo.md from the index."""
    networks = tr.zoo.list()
    said = [
        "# Networks that ship with the package",
        "",
        "Made by `scripts/train_zoo.py`; this page by `scripts/train_zoo.py --table`. Each was",
        "trained on one CPU core within 15 minutes. Accuracies are of n test examples, drawn by",
        "seed: attacked by the suite `quick`, certified by CROWN or Lipschitz constants. The true",
        "robust accuracy on them lies between the last two. `tr.zoo.load(NAME)` gives the network,",
        "`tnn zoo NAME` its card, `tnn zoo NAME --out DIR` a checkpoint that every command takes.",
        "",
        markdown(zoo_table(networks)),
        *(f"- `{one.name}` ({one.data}): {one.about} `{one.command}`" for one in networks),
    ]
    write_bytes(DOCS, ("\n".join(said) + "\n").encode())


def main() -> None:
    """Train what is named, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--table", action="store_true", help="write docs/zoo.md")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in RECIPES]:
        sys.exit(f"no recipe for {', '.join(unknown)}: there are {', '.join(RECIPES)}")
    torch.set_num_threads(1)
    for name in given.names:
        train_one(name)
    if given.table:
        table()


if __name__ == "__main__":
    main()
