"""python -m pipeline: the commands that every stage shares, each loaded only when it is called."""

from __future__ import annotations

import importlib

import click

# command name -> (module, attribute, its line in --help). The line is repeated here so that --help loads no module.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "import": ("pipeline.importers", "command", "Check a dataset's videos against its lists and record it."),
    "datasets": ("pipeline.status", "datasets_command", "List the known datasets and how complete they are."),
    "demo": ("pipeline.demo", "command", "Render the embedded dataset `demo` as real video files."),
    "status": ("pipeline.status", "command", "Show what is done, missing and failed, and why."),
    "verify": ("pipeline.verify", "command", "Re-read shards, check their checksums and name each bad one."),
    "plan": ("pipeline.plan", "command", "Show how the work splits over array tasks."),
    "view": ("pipeline.view", "command", "Show a shard's flow beside its frames, as PNG or MP4."),
    "export": ("pipeline.export", "command", "Write shards in another tool's layout."),
    "import-flow": ("pipeline.import_flow", "command", "Make shards from folders of flow images."),
    "pack": ("pipeline.pack", "command", "Put many shards into few files, and take them out again."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.command(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
def main() -> None:
    """Datasets, shards and what became of them.

    Commands that work on a dataset take --data DIR, the data root (default: $TWO_STREAM_DATA, else ./data).
    """


if __name__ == "__main__":
    main(prog_name="python -m pipeline")
