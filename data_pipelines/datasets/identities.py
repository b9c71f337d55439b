"""`identities.csv` in a dataset's root: names people by the paths of their tracklets."""

import os
from collections.abc import Mapping, Sequence

from data_pipelines.datasets.findings import first_of
from data_pipelines.errors import InputError
from data_pipelines.io.files import resolve_inside
from data_pipelines.io.names import path_key
from data_pipelines.io.tables import read_table
from data_pipelines.io.terminal import log

IDENTITIES = "identities.csv"
IDENTITY_COLUMNS = ("tracklet", "identity")


def read_identities_file(root: str | os.PathLike[str], paths: Sequence[str]) -> dict[str, str]:
    """Returns the identities of the tracklets that the file names, by their paths.

    Its paths are below the root or absolute, with any spelling that `names.path_key` ignores.

    Args:
      root: of the dataset. Without the file there, no one is named.
      paths: of all tracklets, below the root.

    Raises:
      InputError: the file is broken or has two rows for a tracklet, or less than half of its rows
        are of tracklets. If fewer are not, they are logged.
    """
    if not os.path.lexists(os.path.join(root, IDENTITIES)):
        return {}
    places = [f"{path_key(place(root))}/" for place in (os.path.abspath, os.path.realpath)]

    def entry(row: Mapping[str, str]) -> tuple[str, tuple[str, str]]:
        key = path_key(row["tracklet"])
        for place in places:
            key = key.removeprefix(place)
        return key, (row["tracklet"], row["identity"])

    named = read_table(resolve_inside(root, IDENTITIES), IDENTITY_COLUMNS, entry)
    keys = {path: path_key(path) for path in paths}
    existing = {*keys.values()}
    absent = [(place, row[0]) for key, (place, row) in named.items() if key not in existing]
    if 2 * len(absent) > len(named):
        place, path = absent[0]
        raise InputError(
            f"{place}: there is no tracklet {path!r}, and {len(absent)} of {len(named)} rows are "
            f"like this; write paths as {paths[0]!r}, and remove rows of tracklets that are gone"
        )
    if absent:
        log(
            f"{IDENTITIES}: {len(absent)} of its tracklets do not exist "
            f"({first_of([path for _, path in absent])})"
        )
    return {path: named[key][1][1] for path, key in keys.items() if key in named}
