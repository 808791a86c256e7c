"""python -m pipeline: the commands that every stage shares, each loaded only when it is called."""

from __future__ import annotations

import click

from pipeline import start
from pipeline.options import CONTEXT, LazyCommand, LazyGroup

COMMANDS: dict[str, LazyCommand] = {
    "import": LazyCommand(
        "pipeline.import_dataset", "command", "Check a dataset's videos against its lists and record it."
    ),
    "fetch-lists": LazyCommand(
        "pipeline.fetch_lists", "command", "Fetch the official lists of UCF-101 or HMDB-51, and check them."
    ),
    "unpack": LazyCommand("pipeline.unpack", "command", "Unpack a dataset's archive and the archives in it."),
    "datasets": LazyCommand(
        "pipeline.status", "datasets_command", "List the known datasets and how complete they are."
    ),
    "demo": LazyCommand(
        "pipeline.demo", "command", "Render the embedded dataset `demo` as real video files."
    ),
    "status": LazyCommand("pipeline.status", "command", "Show what is done, missing and failed, and why."),
    "verify": LazyCommand(
        "pipeline.verify", "command", "Re-read shards, check their checksums and name each bad one."
    ),
    "plan": LazyCommand("pipeline.plan", "command", "Show how the work splits over array tasks."),
    "view": LazyCommand("pipeline.view", "command", "Show flow beside frames: a clip, or many on a sheet."),
    "export": LazyCommand("pipeline.export", "command", "Write shards in another tool's layout."),
    "import-flow": LazyCommand("pipeline.import_flow", "command", "Make shards from folders of flow images."),
    "pack": LazyCommand(
        "pipeline.pack", "command", "Put many shards into few files, and take them out again."
    ),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings=CONTEXT)
def main() -> None:
    """Datasets, their shards, and what happened to each video.

    Commands that work on a dataset take --data DIR, the data root (default: $TWO_STREAM_DATA, else ./data).
    """


if __name__ == "__main__":
    start.run(main, "python -m pipeline")
