"""tnn-train: train a tensor neural network into a run directory."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results
from tnn_robust_cli import _train_options as asked_of

from tnn_robust.base import choices
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.threat import Eps
from tnn_robust.data.spec import MACHINE_SPECIFIC

if TYPE_CHECKING:
    from tnn_robust.attacks.attack import Attack
    from tnn_robust.base.progress import Steps
    from tnn_robust.training.certified_settings import CertifiedSettings
    from tnn_robust.training.gradient_flow import FlowSettings
    from tnn_robust.training.results import EpochRecord, StackedEpoch
    from tnn_robust.training.run import TrainRequest
    from tnn_robust.training.run_state import TrainRun
    from tnn_robust.training.settings import TrainSettings
    from tnn_robust.training.trajectory_results import FlowRecord


# What a flow has none of, and what is its alone.
_OF_BATCHES = (
    "epochs",
    "batch_size",
    "optimizer",
    "momentum",
    "weight_decay",
    "norm_bound",
    "norm_penalty",
    "nuclear",
    "matmul_precision",
    "certified",
    "objective",
    "beta",
    "margin",
    "replays",
    "awp",
    "schedule",
    "warmup",
    "label_smoothing",
    "ema",
    "validate",
    "select",
    "patience",
    "stop_on_overfit",
)
_OF_CERTIFIED = ("ramp_start", "ramp", "bound_weight", "weight_ramp", "regularise", "box")
_FAMILY = ("activation", "bias", "orthogonal")
_OF_REQUEST = ("transform", "seed", "device", "overwrite", "resume", "track", "eps_unit")
_OF_FLOW = ("flow_steps", "until_log_risk", "ode", "hold_drift")


@shared.command(
    "tnn-train",
    shared=True,
    main=("dataset", "eps", "out"),
    examples=(
        "tnn-train --out runs/first",
        "tnn-train --dataset mnist --classes 3,7 --rank 4 --attack fgsm --eps 20/255 \\\n"
        "    --epochs 10 --out runs/digits37",
    ),
)
@shared.options(
    *(shared.data_set, shared.data_place, asked_of.NETWORK, asked_of.ATTACK, asked_of.TRAINING),
    *(asked_of.CERTIFIED, asked_of.VALIDATION, asked_of.FLOW),
)
@click.option(
    "--seed", type=shared.SEED, default=0, help="Draw weights, batches and attacks by this."
)
@click.option(
    "--seeds",
    type=shared.SEEDS,
    help="Train a network each side by side, 0:20 or 1,5, into OUT/seed-0, ...",
)
@shared.device
@shared.resuming("an interrupted run of these options")
@click.option("--out", type=shared.RESULT, required=True, help="Write the run directory there.")
@shared.heading(
    "Output",
    click.option("--overwrite", is_flag=True, help="Replace what is in it."),
    click.option(
        "--tensorboard",
        type=shared.RESULT,
        metavar="DIR",
        help="Write the numbers of every epoch there, for TensorBoard.",
    ),
)
def main(out: Path, tensorboard: Path | None, **given: Any) -> None:
    """Train a t-NN on clean or adversarial examples.

    The run directory gets model.safetensors (usable after every epoch),
    training.safetensors (to resume from) and metrics.jsonl (a line an epoch, of
    gradient flow one every 100 steps). Where held-back examples select another
    epoch than the last, last.safetensors has the last one's network.
    """
    seeds = _seeds(given)
    _check(given)
    flow = given["gradient_flow"]
    _refuse_given(_OF_BATCHES if flow else _OF_FLOW, flow)
    if given["certified"] is None:
        _refuse_certified()
    if seeds is not None and (flow or given["track"] is not None):
        raise InputError("--seeds trains side by side: it takes no --gradient-flow and --track")
    request = _request(out, given)
    if flow:
        if tensorboard is not None:
            raise InputError("--tensorboard has the scalars of epochs: not with --gradient-flow")
        shared.refuse_processes("--gradient-flow")
        _flow(request)
    else:
        _epochs(request, seeds, tensorboard)


def _check(given: dict[str, Any]) -> None:
    """Refuse what would be ignored, or be said of another option."""
    if given["loss"] not in choices.TRAINING_LOSSES:
        raise unknown_choice("training loss", given["loss"], choices.TRAINING_LOSSES, field="loss")
    if given["momentum"] and given["optimizer"] == "adam":
        raise InputError("adam takes no momentum: leave it out or use sgd", field="momentum")


def _refuse_given(names: tuple[str, ...], flow: bool) -> None:
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is {'not' if flow else 'only'} for --gradient-flow")


def _refuse_certified() -> None:
    context = click.get_current_context()
    for name in _OF_CERTIFIED:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise InputError(f"--{name.replace('_', '-')} is only for --certified")


def _flow(request: "TrainRequest") -> None:
    from tnn_robust_cli import _render

    from tnn_robust.models.checkpoint import FILE_NAME
    from tnn_robust.training.flow import flow_steps, open_flow
    from tnn_robust.training.run_state import STATE

    run, state = open_flow(request)
    with shared.going_on(request.out, "the last saved step"):
        _render.show_lines(_start_lines(run, None, request.track))
        last = _render.follow(flow_steps(run, state))
    done = _results.saved(request.out, FILE_NAME, STATE)
    _render.show_lines([*_flow_lines(last, request), done])


def _flow_lines(last: "FlowRecord | None", request: "TrainRequest") -> list[str]:
    if last is None:
        return ["Nothing left to train."]
    steps = getattr(request.settings, "steps", 0)
    why = {
        "log-risk": "reached",
        "steps": "the steps are used up",
        "stalled": "no step lowers the risk any more",
    }[last.ended]
    lines = [
        f"step {last.step}/{steps}  log-risk {last.log_risk:.6g} ({why})  "
        f"separated {last.correct} of {last.n}, least margin {last.q_min:.4g}, ||W|| "
        f"{last.weight_norm:.4g}; {last.rejected} steps rolled back, {last.jumps} jumps",
    ]
    met = "is met" if last.separable else "is not met: the perturbed examples are not separated"
    sign = "<=" if last.separable else ">"
    lines.append(f"Assumption 14 {met} (N L {sign} l(b_f)).")
    if not last.is_flow:
        lines.append(
            f"WARNING: not a flow: what it conserves drifted by {last.drift:.3g}, above 5 % of the "
            f"growth of ||W||^2, {last.growth:.3g}; --hold-drift 0.05 holds it."
        )
    return lines


def _epochs(
    request: "TrainRequest", seeds: tuple[int, ...] | None, tensorboard: Path | None
) -> None:
    from tnn_robust_cli import _render
    from tnn_robust_cli._tensorboard import scalars

    from tnn_robust.base.team import joined
    from tnn_robust.models.checkpoint import FILE_NAME
    from tnn_robust.training.results import guess_note
    from tnn_robust.training.run import open_run, train_steps
    from tnn_robust.training.run_state import STATE
    from tnn_robust.training.seeds import open_seeds, train_seeds

    with shared.going_on(request.out, "the last whole epoch"), joined() as team:
        steps: Steps[Any]
        if seeds is None:
            with team.agreeing():
                runs = [open_run(request, team)]
            steps = train_steps(runs[0], team)
        else:
            runs = open_seeds(request, seeds, team)
            steps = train_seeds(request.out, runs, team)
        _render.show_lines(_start_lines(runs[0], seeds, request.track))
        labels = runs[0].dataset.test.y
        with scalars(tensorboard) as also:
            found = _render.follow(steps, also)
        notes = [
            f"Seed {run.seed}: {note}" if seeds else note for run in runs for note in run.notes
        ]
        del runs, steps  # the networks go before the team does
    epochs = getattr(request.settings, "epochs", 0)
    last = found[-1].text(epochs) if found else "Nothing left to train."
    ends = _last_records(found[-1], seeds) if found else []
    notes += [f"{who}{note}" for who, one in ends if (note := guess_note(one, labels))]
    folders = [""] if seeds is None else [f"seed-{seed}/" for seed in seeds]
    names = [folder + name for folder in folders for name in (FILE_NAME, STATE)]
    _render.show_lines([last, *notes, _results.saved(request.out, *names)])


def _last_records(
    last: "EpochRecord | StackedEpoch", seeds: tuple[int, ...] | None
) -> "list[tuple[str, EpochRecord]]":
    """Whose it is, in words, and its record of the last epoch."""
    from tnn_robust.training.results import EpochRecord

    if isinstance(last, EpochRecord):
        return [("", last)]
    many = seeds is not None and len(seeds) > 1
    return [(f"Seed {seed}: " if many else "", one) for seed, one in last.records.items()]


def _seeds(given: dict[str, Any]) -> tuple[int, ...] | None:
    seeds = given.pop("seeds")
    source = click.get_current_context().get_parameter_source("seed")
    if seeds is not None and source is not click.core.ParameterSource.DEFAULT:
        raise InputError("--seed and --seeds exclude each other, got both")
    return seeds


def _request(out: Path, given: dict[str, Any]) -> "TrainRequest":
    given["certified"] = _certified(given)
    attack = _attack(given)
    width, layers = given.pop("width"), given.pop("layers")
    data = shared.data_spec(given)
    for name in MACHINE_SPECIFIC:
        del given[name]
    rest = {name: given.pop(name) for name in (*_FAMILY, *_OF_REQUEST)}
    ranks = given.pop("rank")

    from tnn_robust.models.network import layer_widths
    from tnn_robust.training.run import TrainRequest

    return TrainRequest(
        data=data,
        out=out,
        widths=layer_widths(width, layers),
        ranks=ranks,
        settings=_settings(given, attack),
        attack=attack,
        **rest,
    )


def _settings(given: dict[str, Any], attack: "Attack | None") -> "TrainSettings | FlowSettings":
    from tnn_robust.training.gradient_flow import FlowSettings
    from tnn_robust.training.options import settings_from

    flow, steps = given.pop("gradient_flow"), given.pop("flow_steps")
    until, ode = given.pop("until_log_risk"), given.pop("ode")
    hold = given.pop("hold_drift")
    if not flow:
        return settings_from(given, attack)
    return FlowSettings(
        steps=steps,
        until_log_risk=until,
        ode=ode,
        lr=given["lr"],
        loss=given["loss"],
        hold_drift=hold,
    )


def _certified(given: dict[str, Any]) -> "CertifiedSettings | None":
    method = given.pop("certified")
    asked = {name: given.pop(name) for name in _OF_CERTIFIED}
    if method is None:
        return None
    from tnn_robust.training.certified_settings import CertifiedSettings

    norm = given["norm"] or ("l2" if method in ("lipschitz", "noise") else "linf")
    if given["attack"] == "pgd":  # what is watched is in the same ball
        given["norm"] = norm
    weight, start = asked.pop("bound_weight"), asked.pop("ramp_start")
    eps = Eps(*given["eps"]).value
    return CertifiedSettings(method, norm=norm, eps=eps, weight=weight, start=start, **asked)


def _attack(given: dict[str, Any]) -> "Attack | None":
    # A flow attacks the margin: the same direction, and its gradient never underflows.
    loss = "margin" if given["gradient_flow"] else given["loss"]
    name, eps = given.pop("attack"), Eps(*given.pop("eps"))

    from tnn_robust.training.options import attack_to_train

    return attack_to_train(
        name,
        eps,
        norm=given.pop("norm"),
        steps=given.pop("steps"),
        step_size=given.pop("step_size"),
        loss=loss,
        channels=given.pop("channels"),
        faces=given.pop("faces"),
    )


def _start_lines(run: "TrainRun", seeds: tuple[int, ...] | None, track: int | None) -> list[str]:
    from tnn_robust.data.description import shape_warnings
    from tnn_robust.training.run_state import MONITOR
    from tnn_robust.training.settings import TrainSettings

    a, data, settings = run.model.architecture, run.dataset, run.settings
    attack, count = run.attack, run.model.parameter_count
    against = "clean examples"
    if attack is not None:
        steps = "1 step" if attack.steps == 1 else f"{attack.steps} steps"
        against = f"{attack.name}, {attack.threat}, {steps} of {attack.step_size:.4g}"
    if (bounds := getattr(settings, "certified", None)) is not None:
        used = "trained on and watched" if bounds.needs_attack else "watched"
        bound = f"certified by {bounds.method}, {bounds.norm} eps {bounds.eps:g}"
        against = f"{bound}, {used}: {against}"
    seed = f"seed {run.seed}"
    if seeds is not None:
        named = ", ".join(str(seed) for seed in (*seeds[:3], *(["..."] if len(seeds) > 3 else [])))
        seed = f"{len(seeds)} networks side by side of seed {named}"
    ranks = "dense" if not any(a.ranks) else f"tubal rank {','.join(map(str, a.ranks))}"
    ranks = ", ".join((ranks, *a.departures))
    lines = [
        f"Data: {data.name}, {len(data.train.y)} train and {len(data.test.y)} test examples of "
        f"{data.d} features x {data.c} channels ({data.layout}), classes {', '.join(data.classes)}",
        *(f"      {note}" for note in data.notes),
        *(f"WARNING: {text}" for text in shape_warnings(data)),
        f"Network: {len(a.widths)} t-layers of width {','.join(map(str, a.widths))}, {ranks}, "
        f"{a.transform}, {a.scores} score{'s' * (a.scores > 1)}, {count} parameters",
        f"Training: {against}; {_manner(settings)}, {settings.loss}, {seed}, on {run.device}",
    ]
    if isinstance(settings, TrainSettings):
        watched = min(MONITOR, len(data.test.y))
        how = "clean" if attack is None else f"clean and under {attack.name}"
        lines.append(f"Epoch lines: accuracy on {watched} test examples, drawn by seed, {how}")
    if run.tracked:
        n = len(data.train.y)
        which = f"all {n}" if run.tracked == n else f"{run.tracked} of {n}, drawn by seed,"
        lines.append(f"Tracking: {which} training examples, every {track} steps")
    if (held := len(run.places[1])) and run.validation is not None:
        kept = f"the best epoch by {run.validation.select} accuracy"
        kept = "the last epoch" if run.validation.select == "last" else kept
        lines.append(f"Held back: {held} training examples; the weights of {kept} are kept")
    if run.done:
        unit = "epoch" if hasattr(settings, "epochs") else "step"
        lines.append(f"Resuming after {unit} {run.done}.")
    return lines


def _manner(settings: "TrainSettings | FlowSettings") -> str:
    from tnn_robust.training.settings import TrainSettings

    if isinstance(settings, TrainSettings):
        return (
            f"{settings.optimizer} lr {settings.lr:g}, batches of {settings.batch_size}, "
            f"{settings.epochs} epochs{settings.extras}"
        )
    return (
        f"gradient flow ({settings.ode or 'Lyu-Li controller'}), first step {settings.lr:g}, at "
        f"most {settings.steps} steps, until log-risk {settings.until_log_risk:g}"
    )


if __name__ == "__main__":
    main()
