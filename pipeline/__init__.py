"""What every stage shares: datasets, paths, video decoding, the flow codec, shards and outcomes."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is about to import one of our commands
    import os
    import signal

    # During the imports, which have nothing to clean up, Ctrl-C ends the process at once and without a word.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
