"""The help page of a command: three main options, the others under headings, examples.

A heading is of the options (see `heading`); one without is Output where it names a file to
write, and Run otherwise.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

import click
from cloup.formatting import HelpFormatter, HelpSection
from tnn_robust_cli._paths import RESULT

_FIRST, _LAST = ("Data", "Network", "Attack"), ("Run", "Output")  # a command's own are between
_MAIN = "Main options"
# What other toolkits call an option.
_ALSO_CALLED = {
    "learning-rate": "lr",
    "epsilon": "eps",
    "data": "dataset",
    "iterations": "steps",
    "iters": "steps",
    "num-steps": "steps",
    "num-epochs": "epochs",
    "alpha": "step-size",
    "output": "out",
    "out-dir": "out",
    "save": "out",
    "gpu": "device",
    "cuda": "device",
    "random-seed": "seed",
    "force": "overwrite",
    "limit": "n",
    "samples": "n",
    "n-examples": "n",
}


def options(*decorators: Callable) -> Callable[[Callable], Callable]:
    """Several options as one decorator, in the order of the help page."""

    def decorate(function: Callable) -> Callable:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def heading(title: str, *decorators: Callable) -> Callable[[Callable], Callable]:
    """The same under a heading of the help page; those that have one keep it."""

    def decorate(function: Callable) -> Callable:
        before = len(getattr(function, "__click_params__", []))
        function = options(*decorators)(function)
        for parameter in function.__click_params__[before:]:  # type: ignore[attr-defined]
            vars(parameter).setdefault("heading", title)
        return function

    return decorate


def write_options(
    formatter: HelpFormatter, ctx: click.Context, params: Iterable[click.Parameter], main: list[str]
) -> None:
    """Write the sections of the help page, their columns aligned; main: of options, by name."""
    shown = [one for one in params if isinstance(one, click.Option) and not one.hidden]
    by_name = {one.name: one for one in shown}
    found: dict[str, list[click.Option]] = {_MAIN: [by_name[name] for name in main]}
    found |= {title: [] for title in _FIRST}
    ends: dict[str, list[click.Option]] = {title: [] for title in _LAST}
    for one in shown:
        if one.name not in main:
            title = _heading_of(one)
            (ends if title in ends else found).setdefault(title, []).append(one)
    sections = [
        HelpSection(title, [_record(one, ctx) for one in group])
        for title, group in (found | ends).items()
        if group
    ]
    formatter.write_many_sections(sections, aligned=True)


def _record(option: click.Option, ctx: click.Context) -> tuple[str, str]:
    name, text = option.get_help_record(ctx) or ("", "")
    return name.replace(" RANGE", ""), text


def _heading_of(option: click.Option) -> str:
    own = vars(option).get("heading")
    return str(own) if own else "Output" if option.type is RESULT else "Run"


def write_examples(formatter: click.HelpFormatter, examples: Iterable[str]) -> None:
    """Write command lines as they are typed; a long one goes on in a second line."""
    formatter.write("\nExamples:\n")
    for one in examples:
        formatter.write("".join(f"  {line}\n" for line in one.splitlines()))


def unknown_option(typed: str, ctx: click.Context) -> str:
    """What to say of an option that the command does not have: the nearest one, in any case."""
    known = [
        name.lstrip("-") for one in ctx.command.get_params(ctx) for name in one.opts if "--" in name
    ]
    plain = typed.lstrip("-").lower().replace("_", "-")
    meant = _ALSO_CALLED.get(plain)
    near = [meant] if meant in known else get_close_matches(plain, known, 1)
    hint = f", did you mean --{near[0]}?" if near else ""
    return f"there is no option {typed}{hint}"
