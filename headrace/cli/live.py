"""A board on the whole of a terminal, and the key that ends it."""

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.text import Text

from headrace.cli.board import Board
from headrace.cli.screen import lines

_QUIT = frozenset(b"qQ\x04")


@contextmanager
def screen(quit_: Callable[[], None]) -> Iterator[Callable[[Board], None]]:
    """What draws a board. `quit_` is called at `q`; afterwards the terminal is as it was. For a running loop."""
    console = Console(highlight=False)
    # Its default would leave the terminal without echo and on its other screen.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, quit_)
    with _keys(quit_), Live(console=console, screen=True, auto_refresh=False, transient=True) as live:

        def show(board: Board) -> None:
            width, height = console.size
            at = datetime.now(UTC).astimezone()
            live.update(painted(lines(board, at=at, width=width, height=height)), refresh=True)

        yield show


def painted(shown: list[str]) -> Text:
    """The lines, with what matters in colour; without colours they say the same."""
    text = Text("\n".join(shown), no_wrap=True, overflow="crop")
    text.highlight_regex(r"(?m)^(MODEL|TENANT|PROCESS) .*$", "bold reverse")
    text.highlight_regex(r"^headrace top", "bold")
    text.highlight_regex(r"(?m)\bAWAY\b.*$", "bold red")
    text.highlight_regex(r"(?m)^… .*$", "dim")
    return text


@contextmanager
def _keys(quit_: Callable[[], None]) -> Iterator[None]:
    """Call `quit_` when `q` is typed, without waiting for a line. Nothing where nobody types here."""
    if not sys.stdin.isatty():
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    loop = asyncio.get_running_loop()

    def typed() -> None:
        keys = os.read(keyboard, 64)
        if not keys or _QUIT.intersection(keys):
            loop.remove_reader(keyboard)
            quit_()

    tty.setcbreak(keyboard)  # Ctrl-C stays a signal
    loop.add_reader(keyboard, typed)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
