"""Under which conditions tracklets were filmed: an optional `attributes.csv` in a dataset's root.

Each row of the file describes one tracklet; other columns and rows of tracklets that are not packed
are ignored, and every packed tracklet needs a row.

| column | content |
| --- | --- |
| `split`, `row`, `identity`, `modality` | the tracklet: the split, `Tracklet.row` and \
`Tracklet.identity`, `rgb` or `ir` |
| `occluder` | what passes in front of the person, or `none` in any case |
| `light` | brightness relative to good light, 1 |
| `resolution` | relative to a sharp picture of this size, 1 |
| `motion_blur` | 0 if it is not motion-blurred |
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import files
from data_pipelines.io.tables import read_table

NAME = "attributes.csv"
_KEY = ("split", "row", "identity", "modality")
_NUMBERS = ("light", "resolution", "motion_blur")
_COLUMNS = (*_KEY, "occluder", *_NUMBERS)
_MODALITIES = {"rgb": schema.VISIBLE, "ir": schema.INFRARED}
_NO_WORDS = ("-", "0", "false", "n/a", "na", "nan", "no", "null")  # how others write "none"
_AGAIN = f"correct it, or remove {NAME} to pack without conditions"

_Key = tuple[str, int, str, int]  # split, row, identity, modality


def with_conditions(
    root: str | os.PathLike[str], splits: Mapping[str, Sequence[schema.Tracklet]]
) -> Mapping[str, Sequence[schema.Tracklet]]:
    """Returns the tracklets of a dataset with the conditions that its `attributes.csv` implies.

    "occluded" if there is an occluder, "low light" if `light` is below 1, "low resolution" if
    `resolution` is below 1, "smeared" if `motion_blur` is above 0, and "clean" if none of these
    holds.

    Args:
      root: of the dataset. Without an `attributes.csv` there, the tracklets are unchanged.
      splits: the tracklets of each split.

    Raises:
      InputError: the file is not as described above, describes a tracklet twice, or a tracklet is
        not in it.
    """
    if not os.path.lexists(os.path.join(root, NAME)):
        return splits
    found = read_table(files.resolve_inside(root, NAME), _COLUMNS, _entry)

    def described(split: str, tracklet: schema.Tracklet) -> schema.Tracklet:
        key = (split, tracklet.row, tracklet.identity, tracklet.modality)
        # Taken out, since a row describes one tracklet, and test rows of BUPTCampus are lines of
        # two lists.
        _, conditions = found.pop(key, ("", ()))
        if not conditions:
            modality = {number: name for name, number in _MODALITIES.items()}[tracklet.modality]
            raise InputError(
                f"{NAME}: no row for the {split} tracklet of row {tracklet.row}, identity "
                f"{tracklet.identity}, modality {modality} ({tracklet.frames[0]}); {_AGAIN}"
            )
        return dataclasses.replace(tracklet, conditions=conditions)

    return {
        split: [described(split, tracklet) for tracklet in tracklets]
        for split, tracklets in splits.items()
    }


def _entry(row: Mapping[str, str]) -> tuple[_Key, tuple[str, ...]]:
    """Returns which tracklet a row describes, and its conditions, at least one."""
    number, modality = row["row"], row["modality"]
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise InputError(f"row is {number!r:.80}, not a whole number; {_AGAIN}")
    if modality not in _MODALITIES:
        raise InputError(f"modality is {modality!r:.80}: use rgb or ir")
    return (row["split"], int(number), row["identity"], _MODALITIES[modality]), _conditions(row)


def _conditions(row: Mapping[str, str]) -> tuple[str, ...]:
    occluder = row["occluder"].casefold()
    if not occluder or occluder in _NO_WORDS:
        raise InputError(
            f"occluder is {row['occluder']!r}: name what passes in front, or use none if nothing "
            "does"
        )
    values = {}
    for name in _NUMBERS:
        try:
            values[name] = float(row[name])
        except ValueError:
            values[name] = math.nan
        if not 0 <= values[name] < math.inf:
            raise InputError(f"{name} is {row[name]!r:.80}, not a number of 0 or more; {_AGAIN}")
    holds = {
        "occluded": occluder != "none",
        "low light": values["light"] < 1,
        "low resolution": values["resolution"] < 1,
        "smeared": values["motion_blur"] > 0,
    }
    return tuple(name for name, held in holds.items() if held) or ("clean",)
