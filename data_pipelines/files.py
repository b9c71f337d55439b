"""Reading the files of a dataset that somebody else made, never outside its root."""

import os
import pathlib


def resolve_inside(root: str | os.PathLike[str], relative: str) -> pathlib.Path:
    """Returns the file at `root/relative`, links resolved.

    Args:
      root: the dataset's root, which may itself be a link.
      relative: a path below the root, with forward slashes.

    Raises:
      ValueError: the path or a link on it leads out of the root.
      FileNotFoundError: there is no such file.
    """
    real_root = os.path.realpath(root)
    path = os.path.realpath(os.path.join(real_root, relative))
    if os.path.commonpath([real_root, path]) != real_root:
        raise ValueError(
            f"{relative}: leads out of the dataset's root {root} (to {path}); "
            "put the file itself, not a link, below the root"
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{relative}: no such file below the dataset's root {root}")
    return pathlib.Path(path)


def read_inside(root: str | os.PathLike[str], relative: str) -> bytes:
    """Returns the content of the file at `root/relative`; raises as `resolve_inside` does."""
    return resolve_inside(root, relative).read_bytes()
