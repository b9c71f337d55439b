"""Names and lines that others wrote, as a terminal may show them."""

import sys


def printable(text: str, limit: int = 2000) -> str:
    r"""Returns a text on one line, its middle cut if it is long, that cannot steer a terminal.

    Control characters, ends of lines and marks that reverse the direction of writing are escaped as
    Python does: `\x1b`, `\n`, `\u202e`.

    Args:
      text: any text.
      limit: characters of it that are shown.
    """
    if len(text) > limit:
        head, tail = text[: limit * 3 // 4], text[-(limit // 4) :]
        text = f"{head} [... {len(text) - limit} characters ...] {tail}"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def log(message: str) -> None:
    """Prints a line to stderr at once, escaped by `printable`."""
    print(printable(message), file=sys.stderr, flush=True)
