"""Corrupted skeletons, to measure how a trained network uses them: NumPy only.

Random numbers depend only on the tracklet's position in its split, so they are the same for all
networks, batches and numbers of processes.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int64, Shaped

from data_pipelines import schema
from data_pipelines.coco17 import is_detected
from data_pipelines.errors import InputError
from data_pipelines.pixels import resize_keypoints

_SEED = 0
_AMOUNT = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"


class Corruption(NamedTuple):
    """What is done to the skeletons.

    Attributes:
      kind: "drop" makes joints undetected, "jitter" moves detected ones, "swap_people" replaces the
        skeletons of a tracklet by those of another person.
      amount: of "drop", the probability for each joint; of "jitter", the standard deviation of x
        and y as a share of the frame's height; 0 for "swap_people".
    """

    kind: str
    amount: float = 0.0

    def __str__(self) -> str:
        return self.kind if self.kind == "swap_people" else f"{self.kind}:{self.amount:.12g}"


def parse(text: str) -> Corruption | None:
    """Returns the corruption that a text describes; None for "none".

    Args:
      text: "none", "drop:0.3", "jitter:0.05" or "swap_people".

    Raises:
      InputError: it is invalid, or the probability is above 1.
    """
    if text == "none":
        return None
    if text == "swap_people":
        return Corruption(text)
    match = re.fullmatch(f"(drop|jitter):{_AMOUNT}", text)
    if match is None or (match[1] == "drop" and float(match[2]) > 1):
        raise InputError(
            f"corruption {text!r:.80}: use drop:P with a probability P from 0 to 1, jitter:S with "
            "a share S of the frame's height, swap_people or none"
        )
    return Corruption(match[1], float(match[2]))


def corrupted(
    records: Sequence[schema.Record], index: schema.Index, corruption: Corruption | None
) -> Callable[[int], schema.Record]:
    """Returns a function that reads the record at a position, with corrupted skeletons.

    Args:
      records: of a split.
      index: of the same split.
      corruption: None reads the records as they are.

    Raises:
      InputError: "swap_people", and more than half of the tracklets of a modality show one person.
    """
    if corruption is None:
        return records.__getitem__
    if corruption.kind == "swap_people":
        sources = other_people(index.identities, index.modalities)

        def swapped(position: int) -> schema.Record:
            record = records[position]
            return {**record, "keypoints": fitted(records[int(sources[position])], record)}

        return swapped

    def changed(position: int) -> schema.Record:
        record = records[position]
        rng = np.random.Generator(np.random.Philox(key=_SEED, counter=[0, 0, 0, position]))
        change = {"drop": drop, "jitter": jitter}[corruption.kind]
        keypoints = change(record["keypoints"], record["height"], corruption.amount, rng)
        return {**record, "keypoints": keypoints}

    return changed


def drop(
    keypoints: Float32[np.ndarray, "n 17 3"],
    heights: Int[np.ndarray, " n"],
    probability: float,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "n 17 3"]:
    """Returns keypoints, some undetected: zeros, as in a frame without a skeleton."""
    del heights
    dropped = rng.random(keypoints.shape[:-1]) < probability
    return np.where(dropped[..., None], np.float32(0), keypoints)


def jitter(
    keypoints: Float32[np.ndarray, "n 17 3"],
    heights: Int[np.ndarray, " n"],
    share: float,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "n 17 3"]:
    """Returns keypoints with normal noise on x and y of the detected joints.

    Args:
      keypoints: float32[n, 17, 3]: x, y in pixels of the frames, confidence.
      heights: int[n], pixels.
      share: the standard deviation divided by the frame's height.
      rng: random numbers.

    Returns:
      float32[n, 17, 3].
    """
    noise = rng.standard_normal((*keypoints.shape[:-1], 2)) * (share * heights)[:, None, None]
    moved = keypoints.copy()
    detected = is_detected(keypoints)
    moved[detected, :2] += noise[detected].astype(np.float32)
    return moved


def other_people(
    identities: Shaped[np.ndarray, " n"], modalities: Int[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Returns whose skeletons each tracklet gets: a permutation within each modality, int64[n].

    It is drawn at random, with a fixed seed, and then no tracklet keeps its identity: each that
    would trades with one drawn among those for which both fit.

    Raises:
      InputError: more than half of the tracklets of a modality show one person.
    """
    sources = np.arange(len(identities))
    for number, modality in enumerate(schema.MODALITIES):
        own = np.flatnonzero(modalities == number)
        people, counts = np.unique(identities[own], return_counts=True)
        if own.size and 2 * counts.max() > len(own):
            raise InputError(
                f"swap_people: identity {people[counts.argmax()]} has {counts.max()} of "
                f"{len(own)} {modality} tracklets, so that they cannot all get skeletons of "
                "others; use drop or jitter"
            )
        rng = np.random.Generator(np.random.Philox(key=_SEED, counter=[0, 0, 1, number]))
        drawn = rng.permutation(own)
        names = identities[own]
        for place, name in enumerate(names):
            if identities[drawn[place]] == name:
                # Those places that neither show this person nor got a skeleton of theirs. There is
                # one, since the person has half of the places and skeletons at most, and this
                # place counts among both.
                fits = np.flatnonzero((names != name) & (identities[drawn] != name))
                other = int(rng.choice(fits))
                drawn[[place, other]] = drawn[[other, place]]
        sources[own] = drawn
    return sources


def fitted(source: schema.Record, record: schema.Record) -> Float32[np.ndarray, "n 17 3"]:
    """Returns a record's skeletons for the n frames of another one.

    They are resampled to its length, and resized as frames of the one would be to those of the
    other.
    """
    count, available = len(record["frames"]), len(source["frames"])
    chosen = np.arange(count) * available // count
    old, new = (np.stack([sizes["height"], sizes["width"]], axis=-1) for sizes in (source, record))
    return resize_keypoints(source["keypoints"][chosen], old[chosen], new)
