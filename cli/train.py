"""tnn-train: train a tensor neural network into a run directory."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results

from tnn_robust.base import choices
from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Eps
from tnn_robust.data.spec import MACHINE_SPECIFIC

if TYPE_CHECKING:
    from tnn_robust.attacks.attack import Attack
    from tnn_robust.base.progress import Steps
    from tnn_robust.training.gradient_flow import FlowSettings
    from tnn_robust.training.loop import TrainSettings
    from tnn_robust.training.run import TrainRequest, TrainRun
    from tnn_robust.training.trajectory_results import FlowRecord


def _lists(names: tuple[str, ...]) -> str:
    return ", ".join(names)


_NETWORK = shared.options(
    click.option("--layers", type=click.IntRange(min=1), default=3, help="Number of t-layers."),
    click.option("--width", type=shared.WHOLE_NUMBERS, default="32", help="One, or one a layer."),
    click.option("--rank", type=shared.WHOLE_NUMBERS, help="Tubal rank.  [default: dense layers]"),
    click.option("--transform", default="dct", help=_lists(choices.TRANSFORMS) + "."),
)

_ATTACK = shared.options(
    click.option("--attack", default="pgd", help=f"none, {_lists(choices.TRAINING_ATTACKS)}."),
    click.option("--norm", help=f"Of pgd: {_lists(choices.NORMS)}.  [default: linf]"),
    click.option("--eps", type=shared.ONE_EPS, default="8/255"),
    shared.eps_unit,
    click.option("--steps", type=int, help="Of pgd.  [default: 10]"),
    click.option("--step-size", type=float, help="Of pgd.  [default: 2.5 eps / steps]"),
)

_TRAINING = shared.options(
    click.option("--epochs", type=int, default=20),
    click.option("--batch-size", type=int, default=64),
    click.option("--lr", type=float, default=1e-3),
    click.option("--optimizer", default="adam", help=f"{_lists(choices.OPTIMIZERS)}."),
    click.option("--momentum", type=float, default=0.0, help="Of sgd."),
    click.option("--weight-decay", type=float, default=0.0),
    click.option("--loss", default="cross-entropy", help="cross-entropy, logistic, exponential."),
    click.option("--norm-bound", type=float, help="Keep every ||W_l||_F and ||w|| at most so."),
    click.option("--norm-penalty", type=float, default=0.0, help="Softly, with this weight."),
    click.option(
        "--matmul-precision",
        default=choices.MATMUL_PRECISIONS[0],
        help=f"Of training steps: {_lists(choices.MATMUL_PRECISIONS)} (high is TF32 on a GPU).",
    ),
    click.option("--nuclear", type=float, default=0.0, help="Weight of the tubal nuclear norm."),
)

_FLOW = shared.options(
    click.option("--gradient-flow", is_flag=True, help="Full batch, float64, of log-risk."),
    click.option("--flow-steps", type=int, default=10_000, help="Of gradient flow, at most."),
    click.option("--until-log-risk", type=float, default=-500.0, help="Where the flow ends."),
    click.option("--ode", help=f"Solve the flow: {_lists(choices.ODE_SOLVERS)}."),
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
)
_OF_FLOW = ("flow_steps", "until_log_risk", "ode")


@shared.command("tnn-train", shared=True)
@shared.options(shared.data_set, shared.data_place, _NETWORK, _ATTACK, _TRAINING, _FLOW)
@click.option("--seed", type=shared.SEED, default=0)
@click.option(
    "--seeds",
    type=shared.SEEDS,
    help="0:20 or 1,5: a network each, trained side by side, into OUT/seed-0, ...",
)
@shared.device
@click.option("--out", type=shared.RESULT, required=True, help="The run directory.")
@click.option("--overwrite", is_flag=True, help="Replace what is in it.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of these options.")
def main(out: Path, **given: Any) -> None:
    """Train a t-NN, on clean or adversarial examples, into a run directory.

    The directory gets model.safetensors (usable after every epoch),
    training.safetensors (to resume from) and metrics.jsonl (a line an epoch, of
    gradient flow one every 100 steps).
    """
    seeds = _seeds(given)
    flow = given["gradient_flow"]
    _refuse_given(_OF_BATCHES if flow else _OF_FLOW, flow)
    if seeds is not None and (flow or given["track"] is not None):
        raise InputError("--seeds trains side by side: it takes no --gradient-flow and --track")
    request = _request(out, given)
    if flow:
        shared.refuse_processes("--gradient-flow")
        _flow(request)
    else:
        _epochs(request, seeds)


def _refuse_given(names: tuple[str, ...], flow: bool) -> None:
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is {'not' if flow else 'only'} for --gradient-flow")


def _flow(request: "TrainRequest") -> None:
    from tnn_robust_cli import _render

    from tnn_robust.models.checkpoint import FILE_NAME
    from tnn_robust.training.flow import flow_steps, open_flow
    from tnn_robust.training.run import STATE

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
    return [*lines, f"Assumption 14 {met} (N L {sign} l(b_f))."]


def _epochs(request: "TrainRequest", seeds: tuple[int, ...] | None) -> None:
    from tnn_robust_cli import _render

    from tnn_robust.base.team import joined
    from tnn_robust.models.checkpoint import FILE_NAME
    from tnn_robust.training.run import STATE, open_run, train_steps
    from tnn_robust.training.seeds import open_seeds, train_seeds

    with shared.going_on(request.out, "the last whole epoch"), joined() as team:
        steps: Steps[Any]
        if seeds is None:
            with team.agreeing():
                run = open_run(request, team)
            steps = train_steps(run, team)
        else:
            runs = open_seeds(request, seeds, team)
            run, steps = runs[0], train_seeds(request.out, runs, team)
            del runs
        _render.show_lines(_start_lines(run, seeds, request.track))
        del run
        found = _render.follow(steps)
        del steps
    epochs = getattr(request.settings, "epochs", 0)
    last = found[-1].text(epochs) if found else "Nothing left to train."
    folders = [""] if seeds is None else [f"seed-{seed}/" for seed in seeds]
    names = [folder + name for folder in folders for name in (FILE_NAME, STATE)]
    _render.show_lines([last, _results.saved(request.out, *names)])


def _seeds(given: dict[str, Any]) -> tuple[int, ...] | None:
    seeds = given.pop("seeds")
    source = click.get_current_context().get_parameter_source("seed")
    if seeds is not None and source is not click.core.ParameterSource.DEFAULT:
        raise InputError("--seed and --seeds exclude each other, got both")
    return seeds


def _request(out: Path, given: dict[str, Any]) -> "TrainRequest":
    attack = _attack(given)
    width, layers = given.pop("width"), given.pop("layers")
    data = shared.data_spec(given)
    for name in MACHINE_SPECIFIC:
        del given[name]
    rest = {
        name: given.pop(name)
        for name in ("transform", "seed", "device", "overwrite", "resume", "track", "eps_unit")
    }
    ranks = given.pop("rank")

    from tnn_robust.models.network import layer_widths
    from tnn_robust.training.run import TrainRequest

    return TrainRequest(
        data=data,
        out=out,
        widths=layer_widths(width, layers),
        ranks=ranks,
        settings=_settings(given),
        attack=attack,
        **rest,
    )


def _settings(given: dict[str, Any]) -> "TrainSettings | FlowSettings":
    from tnn_robust.training.gradient_flow import FlowSettings
    from tnn_robust.training.loop import TrainSettings

    flow, steps = given.pop("gradient_flow"), given.pop("flow_steps")
    until, ode = given.pop("until_log_risk"), given.pop("ode")
    if not flow:
        return TrainSettings(**given)
    return FlowSettings(
        steps=steps, until_log_risk=until, ode=ode, lr=given["lr"], loss=given["loss"]
    )


def _attack(given: dict[str, Any]) -> "Attack | None":
    # A flow attacks the margin: the same direction, and its gradient never underflows.
    loss = "margin" if given["gradient_flow"] else given["loss"]
    name, eps = given.pop("attack"), Eps(*given.pop("eps"))

    from tnn_robust.training.in_memory import attack_to_train

    return attack_to_train(
        name,
        eps,
        norm=given.pop("norm"),
        steps=given.pop("steps"),
        step_size=given.pop("step_size"),
        loss=loss,
    )


def _start_lines(run: "TrainRun", seeds: tuple[int, ...] | None, track: int | None) -> list[str]:
    from tnn_robust.data.description import shape_warnings

    a, data, settings = run.model.architecture, run.dataset, run.settings
    attack, count = run.attack, run.model.parameter_count
    against = "clean examples"
    if attack is not None:
        steps = "1 step" if attack.steps == 1 else f"{attack.steps} steps"
        against = f"{attack.name}, {attack.threat}, {steps} of {attack.step_size:.4g}"
    seed = f"seed {run.seed}"
    if seeds is not None:
        named = ", ".join(str(seed) for seed in (*seeds[:3], *(["..."] if len(seeds) > 3 else [])))
        seed = f"{len(seeds)} networks side by side of seed {named}"
    ranks = "dense" if not any(a.ranks) else f"tubal rank {','.join(map(str, a.ranks))}"
    lines = [
        f"Data: {data.name}, {len(data.train.y)} train and {len(data.test.y)} test examples of "
        f"{data.d} features x {data.c} channels ({data.layout}), classes {', '.join(data.classes)}",
        *(f"      {note}" for note in data.notes),
        *(f"WARNING: {text}" for text in shape_warnings(data)),
        f"Network: {len(a.widths)} t-layers of width {','.join(map(str, a.widths))}, {ranks}, "
        f"{a.transform}, {a.scores} score{'s' * (a.scores > 1)}, {count} parameters",
        f"Training: {against}; {_manner(settings)}, {settings.loss}, {seed}, on {run.device}",
    ]
    if run.tracked:
        n = len(data.train.y)
        which = f"all {n}" if run.tracked == n else f"{run.tracked} of {n}, drawn by seed,"
        lines.append(f"Tracking: {which} training examples, every {track} steps")
    if run.done:
        unit = "epoch" if hasattr(settings, "epochs") else "step"
        lines.append(f"Resuming after {unit} {run.done}.")
    return lines


def _manner(settings: "TrainSettings | FlowSettings") -> str:
    from tnn_robust.training.loop import TrainSettings

    if isinstance(settings, TrainSettings):
        return (
            f"{settings.optimizer} lr {settings.lr:g}, batches of {settings.batch_size}, "
            f"{settings.epochs} epochs"
        )
    return (
        f"gradient flow ({settings.ode or 'Lyu-Li controller'}), first step {settings.lr:g}, at "
        f"most {settings.steps} steps, until log-risk {settings.until_log_risk:g}"
    )


if __name__ == "__main__":
    main()
