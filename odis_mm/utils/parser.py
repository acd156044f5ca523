"""The parser of every command line: what is wrong with the arguments is one sentence, as all errors are."""

import argparse
import sys
from typing import Callable, NoReturn

from .errors import USER_ERROR, printable


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that says what is wrong first, without the usage, and where the options are listed."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with ``USER_ERROR``."""
        sentence = printable(message).removeprefix('argument ').rstrip('.')
        print(f'error: {sentence}.\n`{self.prog} --help` lists the options.', file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def at_least(least: int) -> Callable[[str], int]:
    """Return the ``type`` of an option that takes whole numbers from ``least`` on."""

    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f'must be a whole number of {least} or more, got {text!r}') from None
        if value < least:
            raise argparse.ArgumentTypeError(f'must be {least} or more, got {value}')
        return value

    return whole


def share(text: str) -> float:
    """The ``type`` of an option that takes numbers from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = float('nan')
    if not 0 <= value <= 1:  # nor NaN
        raise argparse.ArgumentTypeError(f'must be a number from 0 to 1, got {text}')
    return value
