"""Splits people into those to train on and those to test on, for datasets without published splits.

A split is by identity: all tracklets of a person are in the same one.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io.tables import read_table
from data_pipelines.io.terminal import log

SPLITS = ("train", "test")
_COLUMNS = ("identity", "split")


def split_tracklets(
    tracklets: Sequence[schema.Tracklet], split_of: Callable[[str], str]
) -> dict[str, list[schema.Tracklet]]:
    """Returns the tracklets of `train` and `test`, in their order.

    Those of people whose identity is not known are left out, with a log message.

    Args:
      tracklets: of all people.
      split_of: an identity to its split.

    Raises:
      InputError: a split has no identity with tracklets of both modalities, so that nothing could
        be trained or matched; otherwise as `split_of`.
    """
    known = [tracklet for tracklet in tracklets if tracklet.identity != schema.UNKNOWN]
    if len(known) < len(tracklets):
        log(
            f"left out {len(tracklets) - len(known)} tracklets of people whose identity is not "
            f"known ({schema.UNKNOWN})"
        )
    identities = dict.fromkeys(tracklet.identity for tracklet in known)
    chosen = {identity: split_of(identity) for identity in identities}
    splits: dict[str, list[schema.Tracklet]] = {split: [] for split in SPLITS}
    for tracklet in known:
        splits[chosen[tracklet.identity]].append(tracklet)
    for split, members in splits.items():
        visible, infrared = (
            {tracklet.identity for tracklet in members if tracklet.modality == modality}
            for modality in (schema.VISIBLE, schema.INFRARED)
        )
        if not visible & infrared:
            raise InputError(
                f"{split}: none of its {len(visible | infrared)} identities, of "
                f"{len(identities)} in all, has visible and infrared tracklets, and {split} needs "
                "such people; add some, or split them in another way"
            )
    return splits


def split_by_share(identity: str, test_share: float, seed: int) -> str:
    """Returns "test" for about `test_share` of all identities, "train" for the others.

    The split depends on the identity and the seed alone, not on the other identities, and a larger
    share moves people from `train` to `test` only.
    """
    digest = hashlib.sha256(f"{seed} {identity}".encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < test_share * 2**64 else "train"


def read_split_file(path: str | os.PathLike[str]) -> Callable[[str], str]:
    """Reads a CSV file with the columns `identity` and `split`; returns an identity's split.

    Other columns, and identities without footage, are ignored.

    Args:
      path: of the file; see `tables.read_rows`.

    Returns:
      A function of an identity to "train" or "test"; raises an InputError that names the identity
      if the file has no row for it.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: the file is not as described above, or names an identity twice.
    """

    def entry(row: Mapping[str, str]) -> tuple[str, str]:
        if row["identity"] == schema.UNKNOWN:
            raise InputError(
                f"{schema.UNKNOWN} stands for people whose identity is not known, who are in no "
                "split; delete the row"
            )
        if row["split"] not in SPLITS:
            raise InputError(f"split is {row['split']!r:.80}: use {' or '.join(SPLITS)}")
        return row["identity"], row["split"]

    found = read_table(path, _COLUMNS, entry)

    def split_of(identity: str) -> str:
        if identity not in found:
            raise InputError(
                f"{path}: no row for the identity {identity}; add {identity},train or "
                f"{identity},test"
            )
        return found[identity][1]

    return split_of
