"""The options of tnn-train: network, attack, training and gradient flow."""

import click
from tnn_robust_cli import _options as shared

from tnn_robust.base import choices


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

ATTACK = shared.heading(
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

TRAINING = shared.heading(
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

CERTIFIED = shared.heading(
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

VALIDATION = shared.heading(
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

FLOW = shared.heading(
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
