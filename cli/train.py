"""tnn-train: train a tensor neural network into a run directory."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results

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


def _lists(names: tuple[str, ...]) -> str:
    return ", ".join(names)


NETWORK = shared.heading(
    "Network",
    click.option("--layers", type=click.IntRange(min=1), default=3, help="Build so many t-layers."),
    click.option(
        "--width", type=shared.WHOLE_NUMBERS, default="32", help="Make them so wide: one, or each."
    ),
    click.option(
        "--rank",
        type=shared.WHOLE_NUMBERS,
        help="Factorise them at this tubal rank: one, or each.  [default: dense layers]",
    ),
    click.option(
        "--transform",
        metavar="NAME",
        default="dct",
        help=f"Multiply in this transform's domain: {_lists(choices.TRANSFORMS)}.",
    ),
    click.option(
        "--activation",
        metavar="NAME",
        default="relu",
        help=f"Put this between the layers: {_lists(choices.ACTIVATIONS)}.",
    ),
    click.option(
        "--bias", is_flag=True, help="Give every layer and the head a bias; the paper has none."
    ),
    click.option("--orthogonal", is_flag=True, help="Keep every layer 1-Lipschitz in l2 (Cayley)."),
)

_ATTACK = shared.heading(
    "Attack",
    click.option(
        "--attack",
        metavar="NAME",
        default="pgd",
        help=f"Train against none, {_lists(choices.TRAINING_ATTACKS)}.",
    ),
    click.option(
        "--norm",
        metavar="NORM",
        help=f"Measure the perturbations of pgd in {_lists(choices.NORMS)}.  [default: linf]",
    ),
    click.option(
        "--eps",
        type=shared.ONE_EPS,
        default="8/255",
        help="Allow perturbations of this size, of data scaled to [0, 1].",
    ),
    shared.eps_unit,
    click.option("--steps", type=int, help="Take so many steps of pgd.  [default: 10]"),
    click.option(
        "--step-size",
        type=float,
        help="Move pgd so far in a step, in the unit of eps.  [default: 2.5 eps / steps]",
    ),
    click.option("--channels", metavar="START:STOP", help="Perturb these channels alone."),
    click.option(
        "--faces", metavar="START:STOP", help="Perturb these faces of the transform alone."
    ),
)

_TRAINING = shared.heading(
    "Training",
    click.option(
        "--objective",
        metavar="NAME",
        default="adversarial",
        help=f"Minimise this: {_lists(choices.OBJECTIVES)}.",
    ),
    click.option("--beta", type=float, help="Weigh the KL of trades, mart so.  [default: 6, 5]"),
    click.option("--margin", type=float, help="Ask this margin of hinge.  [default: 1]"),
    click.option("--replays", type=int, help="Take so many steps a batch of free.  [default: 4]"),
    click.option(
        "--awp", type=float, default=0.0, help="Perturb the weights by this share, such as 0.005."
    ),
    click.option("--epochs", type=int, default=20, help="Go through the examples so often."),
    click.option("--batch-size", type=int, default=64, help="Take so many examples a step."),
    click.option("--lr", type=float, default=1e-3, help="Set the learning rate."),
    click.option(
        "--schedule",
        metavar="NAME",
        default="constant",
        help=f"Change the rate so: {_lists(choices.SCHEDULES)}.",
    ),
    click.option(
        "--warmup", type=float, default=0.0, help="Let the rate rise from 0 in so many epochs."
    ),
    click.option("--optimizer", default="adam", help=f"Descend by {_lists(choices.OPTIMIZERS)}."),
    click.option("--momentum", type=float, default=0.0, help="Give sgd this momentum."),
    click.option("--weight-decay", type=float, default=0.0, help="Decay the weights by this."),
    click.option(
        "--loss",
        default="cross-entropy",
        help=f"Take this loss of an example: {_lists(choices.TRAINING_LOSSES)}.",
    ),
    click.option(
        "--label-smoothing",
        type=float,
        default=0.0,
        help="Spread this share of a label over all classes, such as 0.1.",
    ),
    click.option(
        "--ema",
        type=float,
        default=0.0,
        help="Average the weights with this decay; the average counts.",
    ),
    click.option(
        "--norm-bound",
        type=float,
        help="Keep every ||W_l||_F and ||w|| at most so.  [default: free]",
    ),
    click.option(
        "--norm-penalty",
        type=float,
        default=0.0,
        help="Keep them so softly, by a penalty of this weight.",
    ),
    click.option(
        "--matmul-precision",
        default=choices.MATMUL_PRECISIONS[0],
        help=f"Multiply in {_lists(choices.MATMUL_PRECISIONS)} precision (high is TF32 on a GPU).",
    ),
    click.option(
        "--nuclear",
        type=float,
        default=0.0,
        help="Penalise the tubal nuclear norm with this weight.",
    ),
)

_CERTIFIED = shared.heading(
    "Certified training",
    click.option(
        "--certified",
        metavar="NAME",
        help=f"Train by a loss of bounds: {_lists(choices.CERTIFIED_TRAINING)}.  [default: none]",
    ),
    click.option("--ramp-start", type=int, default=0, help="Keep eps at 0 for so many epochs."),
    click.option("--ramp", type=int, default=0, help="Let eps rise in so many epochs after them."),
    click.option(
        "--bound-weight", type=float, default=1.0, help="Give the bounds' loss this share."
    ),
    click.option(
        "--weight-ramp", type=int, default=0, help="Let the share rise from 0 in so many epochs."
    ),
    click.option(
        "--regularise", type=float, default=0.5, help="Regularise so strongly while eps rises."
    ),
    click.option(
        "--box", type=float, default=0.4, help="Give the boxes of sabr this share of eps."
    ),
)

_VALIDATION = shared.heading(
    "Validation",
    click.option(
        "--validate",
        type=float,
        default=0.0,
        help="Hold back this share (or, from 1 on, number) of the training examples.",
    ),
    click.option(
        "--select",
        help=f"Keep the best epoch by them: {_lists(choices.SELECTIONS)}.  [default: robust]",
    ),
    click.option("--patience", type=int, help="Stop after so many epochs without a better one."),
    click.option(
        "--stop-on-overfit", is_flag=True, help="Stop where one-step attacks stop telling."
    ),
)

_FLOW = shared.heading(
    "Gradient flow",
    click.option(
        "--gradient-flow", is_flag=True, help="Follow the flow of log-risk: full batch, float64."
    ),
    click.option("--flow-steps", type=int, default=10_000, help="End after so many steps."),
    click.option(
        "--until-log-risk", type=float, default=-500.0, help="End where the log-risk is so low."
    ),
    click.option(
        "--ode",
        help=f"Solve the flow by {_lists(choices.ODE_SOLVERS)}.  [default: Lyu-Li controller]",
    ),
    click.option(
        "--hold-drift",
        type=float,
        help="Let what the flow conserves drift by this share of the growth of ||W||^2, at most.",
    ),
    click.option(
        "--track",
        type=int,
        is_flag=False,
        flag_value=100,
        metavar="[EVERY]",
        help="Write trajectory.jsonl, a line every so many steps (without a number 100).",
    ),
)
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
    *(shared.data_set, shared.data_place, NETWORK, _ATTACK, _TRAINING),
    *(_CERTIFIED, _VALIDATION, _FLOW),
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
