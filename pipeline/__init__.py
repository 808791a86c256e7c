"""What every stage shares: datasets, paths, video decoding, the flow codec, shards and outcomes."""

import os.path
import sys

# Python is about to import one of our commands, by its module's name or by that of the installed command.
if sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0] if sys.argv else "") == "two-stream":  # noqa: PTH119  quick
    import signal

    # During the imports, which have nothing to clean up, Ctrl-C ends the process at once, silently.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
