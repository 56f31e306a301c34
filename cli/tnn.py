"""tnn: all commands of the toolkit under one name."""

import importlib

import click

from tnn_robust import __version__

# In the order in which data walks.
COMMANDS = (
    "data",
    "train",
    "load",
    "info",
    "attack",
    "certify",
    "compress",
    "bound",
    "report",
    "export",
    "zoo",
    "sweep",
    "reproduce",
)

NEXT = """\
Begin with: tnn train --out runs/first        about a minute, on digits
Then:       tnn attack runs/first --json r.json
And:        tnn report r.json --html r.html    open it in a browser
Each command explains its options and shows examples: tnn train --help"""


class _Group(click.Group):
    """Commands that are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"tnn_robust_cli.{cmd_name}").main

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from tnn_robust.base.errors import unknown_choice

            click.echo(f"Error: {unknown_choice('command', args[0], COMMANDS)}", err=True)
            ctx.exit(2)


@click.group(
    "tnn",
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="tnn")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train, attack and compress tensor neural networks, and say how robust they are."""
    if ctx.invoked_subcommand is None:
        click.echo(f"{ctx.get_help()}\n\n{NEXT}")


if __name__ == "__main__":
    main()
