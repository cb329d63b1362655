"""Keeps an order to stop until `lifecycle.run` is there to obey it. To be imported first where a process begins.

The kernel drops a SIGTERM for which process 1 of a container has no handler, and Python needs seconds until there is
one: such a pod would live on until it is killed, after all of its grace. A blocked one waits, also across `exec`.
"""

import os
import signal


def keep() -> None:
    """Block SIGTERM where the default would not end this process, but leave it without an order."""
    if os.getpid() == 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


keep()
