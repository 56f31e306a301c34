"""tnn-train: train a tensor neural network into a run directory."""

from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _options as shared

from tnn_robust.base import choices
from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Eps
from tnn_robust.data.spec import MACHINE_SPECIFIC
from tnn_robust.training.requests import layer_widths, training_attack


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
@click.option("--out", type=shared.OUT, required=True, help="The run directory.")
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
        _flow(request, out)
    else:
        _epochs(request, out, seeds)


def _refuse_given(names: tuple[str, ...], flow: bool) -> None:
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is {'not' if flow else 'only'} for --gradient-flow")


def _flow(request: Any, out: Path) -> None:
    from tnn_robust_cli import _render

    from tnn_robust.training.flow_run import flow_run
    from tnn_robust.training.trajectory_results import FlowRecord

    steps, last = request.settings.steps, None
    try:
        with _render.progress_bar() as bar:
            for record in flow_run(request):
                if isinstance(record, FlowRecord):
                    last = record
                    text = f"step {record.step}/{steps}  log-risk {record.log_risk:.6g}"
                    bar.update(text, record.step, steps)
                    bar.log(text, record.step, steps)
                else:
                    _render.show_lines(_start_lines(record, request, None))
    except KeyboardInterrupt:
        click.echo(f"Interrupted. {out} holds the last saved step; go on with --resume.", err=True)
        raise SystemExit(shared.INTERRUPTED) from None
    _render.show_lines([*_flow_lines(last, request), f"Saved in {out}."])


def _flow_lines(last: Any, request: Any) -> list[str]:
    if last is None:
        return ["Nothing left to train."]
    why = {
        "log-risk": "reached",
        "steps": "the steps are used up",
        "stalled": "no step lowers the risk any more",
    }[last.ended]
    lines = [
        f"step {last.step}/{request.settings.steps}  log-risk {last.log_risk:.6g} ({why})  "
        f"separated {last.correct} of {last.n}, least margin {last.q_min:.4g}, ||W|| "
        f"{last.weight_norm:.4g}; {last.rejected} steps rolled back, {last.jumps} jumps",
    ]
    met = "is met" if last.separable else "is not met: the perturbed examples are not separated"
    sign = "<=" if last.separable else ">"
    return [*lines, f"Assumption 14 {met} (N L {sign} l(b_f))."]


def _epochs(request: Any, out: Path, seeds: tuple[int, ...] | None) -> None:
    from tnn_robust_cli import _render

    from tnn_robust.base.team import joined
    from tnn_robust.training.results import BatchProgress, EpochRecord, StackedEpoch
    from tnn_robust.training.run import train_run
    from tnn_robust.training.seeds import train_seeds

    epochs, last = request.settings.epochs, ""
    try:
        with joined() as team, _render.progress_bar() as bar:
            records = (
                train_run(request, team) if seeds is None else train_seeds(request, seeds, team)
            )
            for record in records:
                if isinstance(record, EpochRecord | StackedEpoch):
                    last = _epoch_line(record, epochs)
                    bar.update(last, record.epoch, epochs)
                    bar.log(last, record.epoch, epochs)
                elif isinstance(record, BatchProgress):
                    done = record.epoch - 1 + record.batch / record.batches
                    text = last or f"epoch {record.epoch}/{epochs}  loss {record.loss:.4g}"
                    bar.update(text, done, epochs)
                else:
                    _render.show_lines(_start_lines(record, request, seeds))
    except KeyboardInterrupt:
        click.echo(f"Interrupted. {out} holds the last whole epoch; go on with --resume.", err=True)
        raise SystemExit(shared.INTERRUPTED) from None
    _render.show_lines([last or "Nothing left to train.", f"Saved in {out}."])


def _seeds(given: dict[str, Any]) -> tuple[int, ...] | None:
    seeds = given.pop("seeds")
    source = click.get_current_context().get_parameter_source("seed")
    if seeds is not None and source is not click.core.ParameterSource.DEFAULT:
        raise InputError("--seed and --seeds exclude each other, got both")
    return seeds


def _request(out: Path, given: dict[str, Any]):
    attack = _attack(given)
    widths = layer_widths(given.pop("width"), given.pop("layers"))
    data = shared.data_spec(given)
    for name in MACHINE_SPECIFIC:
        del given[name]
    rest = {
        name: given.pop(name)
        for name in ("transform", "seed", "device", "overwrite", "resume", "track")
    }
    ranks = given.pop("rank")

    from tnn_robust.training.run import TrainRequest

    return TrainRequest(
        data=data,
        out=out,
        widths=widths,
        ranks=ranks,
        settings=_settings(given),
        attack=attack,
        **rest,
    )


def _settings(given: dict[str, Any]):
    from tnn_robust.training.gradient_flow import FlowSettings
    from tnn_robust.training.loop import TrainSettings

    flow, steps = given.pop("gradient_flow"), given.pop("flow_steps")
    until, ode = given.pop("until_log_risk"), given.pop("ode")
    if not flow:
        return TrainSettings(**given)
    return FlowSettings(
        steps=steps, until_log_risk=until, ode=ode, lr=given["lr"], loss=given["loss"]
    )


def _attack(given: dict[str, Any]):
    # A flow attacks the margin: the same direction, and its gradient never underflows.
    loss = "margin" if given["gradient_flow"] else given["loss"]
    name, eps = given.pop("attack"), Eps(*given.pop("eps"))
    return training_attack(
        name,
        eps,
        norm=given.pop("norm"),
        steps=given.pop("steps"),
        step_size=given.pop("step_size"),
        loss=loss,
    )


def _epoch_line(record: Any, epochs: int) -> str:
    """An epoch in a line: of stacked networks the means, and what stopped."""
    found = list(record.records.values()) if hasattr(record, "records") else [record]
    stopped = "".join(f"; seed {s} stopped" for s in getattr(record, "failures", {}))
    if not found:
        return f"epoch {record.epoch}/{epochs}{stopped}"
    loss, clean, robust = (
        sum(getattr(one, name) for one in found) / len(found)
        for name in ("loss", "clean_accuracy", "robust_accuracy")
    )
    mean = f"mean of {len(found)}: " if len(found) > 1 else ""
    return (
        f"epoch {record.epoch}/{epochs}  {mean}loss {loss:.4g}  "
        f"test: clean {100 * clean:.1f} %, robust {100 * robust:.1f} %{stopped}"
    )


def _start_lines(started: Any, request: Any, seeds: tuple[int, ...] | None) -> list[str]:
    a, data, settings = started.architecture, started.dataset, request.settings
    attack = request.attack
    against = "clean examples"
    if attack is not None:
        steps = "1 step" if attack.steps == 1 else f"{attack.steps} steps"
        against = (
            f"{attack.name}, {attack.norm} eps {attack.eps}, {steps} of {attack.step_size:.4g}"
        )
    seed = f"seed {request.seed}"
    if seeds is not None:
        named = ", ".join(str(seed) for seed in (*seeds[:3], *(["..."] if len(seeds) > 3 else [])))
        seed = f"{len(seeds)} networks side by side of seed {named}"
    ranks = "dense" if not any(a.ranks) else f"tubal rank {','.join(map(str, a.ranks))}"
    lines = [
        f"Data: {data.name}, {len(data.train.y)} train and {len(data.test.y)} test examples of "
        f"{data.d} features x {data.c} channels ({data.layout}), classes {', '.join(data.classes)}",
        *(f"      {note}" for note in data.notes),
        f"Network: {len(a.widths)} t-layers of width {','.join(map(str, a.widths))}, {ranks}, "
        f"{a.transform}, {a.scores} score{'s' * (a.scores > 1)}, {started.parameters} parameters",
        f"Training: {against}; {_manner(settings)}, {settings.loss}, {seed}, on {started.device}",
    ]
    if started.tracked:
        n = len(data.train.y)
        which = f"all {n}" if started.tracked == n else f"{started.tracked} of {n}, drawn by seed,"
        lines.append(f"Tracking: {which} training examples, every {request.track} steps")
    if started.done:
        unit = "epoch" if hasattr(settings, "epochs") else "step"
        lines.append(f"Resuming after {unit} {started.done}.")
    return lines


def _manner(settings: Any) -> str:
    if hasattr(settings, "epochs"):
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
