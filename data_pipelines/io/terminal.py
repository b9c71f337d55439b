"""Shows text of untrusted files without letting it control the terminal."""

import sys


def printable(text: str, limit: int = 2000) -> str:
    r"""Returns a text as one line that cannot control a terminal, without the middle if it is long.

    Control characters, line ends and marks that reverse the writing direction are escaped as in
    Python: `\x1b`, `\n`, `\u202e`.

    Args:
      text: any text.
      limit: number of characters shown.
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
