"""What the data pipelines exchange: the tracklet in an index, the packed record and the batches."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Shaped, UInt8

VISIBLE = 0
INFRARED = 1
MODALITIES = ("visible", "infrared")  # the position is the modality's number in records
NUM_JOINTS = 17
UNKNOWN = "unknown"  # the identity of all people whose identity is not known


@dataclasses.dataclass(frozen=True)
class Tracklet:
    """One row of a dataset's index: where a tracklet's frames are, and what is known of it.

    Attributes:
      modality: VISIBLE or INFRARED.
      identity: the identity as written on disk, for instance "0001".
      camera: the camera's number.
      frames: paths of the frames in order of time, relative to the dataset's root.
      row: 1-based row in the source index, for traceability. A visible and an infrared training
        tracklet of the same row are an aligned pair: frame by frame the same moments.
      query: whether it is a query of the test split.
      gallery: whether it is in the gallery of the test split.
      camera_name: what users call the camera; the number as text if it is left out.
      conditions: under which it was filmed, such as "occluded" or "low light", without ";" in a
        name; "clean" if nothing is difficult, empty if nothing is known.
    """

    modality: int
    identity: str
    camera: int
    frames: tuple[str, ...]
    row: int
    query: bool = True
    gallery: bool = True
    camera_name: str = ""
    conditions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Names a camera without a name by its number."""
        if not self.camera_name:
            object.__setattr__(self, "camera_name", str(self.camera))


class Record(TypedDict):
    """One packed tracklet of n frames, the same for every dataset.

    Attributes:
      frames: n JPEG files.
      keypoints: float32[n, 17, 3]: x, y in pixels of the stored frame, confidence.
      height: int32[n], pixels; detectors' crops may differ from frame to frame.
      width: int32[n].
      identity: the identity as written on disk.
      label: dense index over the sorted training identities, -1 in the test split.
      camera: the camera's number.
      camera_name: what users call it.
      modality: VISIBLE or INFRARED.
      tracklet: 1-based row in the source index.
      frame_ids: the frames' paths relative to the dataset's root.
      conditions: under which it was filmed; empty if unknown.
    """

    frames: list[bytes]
    keypoints: Float32[np.ndarray, "n 17 3"]
    height: Int32[np.ndarray, " n"]
    width: Int32[np.ndarray, " n"]
    identity: str
    label: int
    camera: int
    camera_name: str
    modality: int
    tracklet: int
    frame_ids: list[str]
    conditions: list[str]


class TrainBatch(TypedDict):
    """A training batch of B pairs of clips, one of each modality, of the same identity.

    Axis 2 is the modality, by its number. After the time axis, so that a batch split over devices
    by pairs, and pairs by time, leaves each device its share of both modalities in one piece.

    Attributes:
      frames: uint8[B, T, 2, H, W, 3], RGB.
      keypoints: float32[B, T, 2, 17, 3]: x, y in pixels of the H x W frame, confidence.
      labels: int32[B].
      cameras: int32[B, 2].
      positions: int32[B, 2], the tracklets in the index of the training split.
    """

    frames: UInt8[np.ndarray, "B T 2 H W 3"]
    keypoints: Float32[np.ndarray, "B T 2 17 3"]
    labels: Int32[np.ndarray, " B"]
    cameras: Int32[np.ndarray, "B 2"]
    positions: Int32[np.ndarray, "B 2"]


@dataclasses.dataclass(frozen=True)
class Index:
    """What is known of the n tracklets of a packed split without reading a record.

    Two training tracklets, one of each modality, that share a row are an aligned pair.

    Attributes:
      identities: str[n], as written on disk.
      labels: int32[n], dense over the sorted training identities, -1 in the test split.
      cameras: int32[n].
      camera_names: str[n], what users call the cameras.
      modalities: int32[n], VISIBLE or INFRARED.
      num_frames: int32[n].
      rows: int32[n], 1-based row in the source index.
      missing_skeletons: int32[n], frames without a skeleton.
      queries: bool[n], whether the tracklet is a query.
      galleries: bool[n], whether it is in the gallery.
      conditions: str[n], under which the tracklet was filmed, joined by ";"; "" if unknown.
    """

    identities: Shaped[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]
    cameras: Int32[np.ndarray, " n"]
    camera_names: Shaped[np.ndarray, " n"]
    modalities: Int32[np.ndarray, " n"]
    num_frames: Int32[np.ndarray, " n"]
    rows: Int32[np.ndarray, " n"]
    missing_skeletons: Int32[np.ndarray, " n"]
    queries: Bool[np.ndarray, " n"]
    galleries: Bool[np.ndarray, " n"]
    conditions: Shaped[np.ndarray, " n"]

    @classmethod
    def from_columns(cls, columns: Mapping[str, Sequence[Any]]) -> Self:
        """Returns the index of tracklets whose entries are in the order of `columns`."""
        return cls(**{name: np.array(columns[name], COLUMN_TYPES[name]) for name in COLUMN_TYPES})

    def of(self, positions: Int[np.ndarray, " m"]) -> Self:
        """Returns the index of some tracklets alone, in the order of their positions."""
        names = [field.name for field in dataclasses.fields(self)]
        return dataclasses.replace(self, **{name: getattr(self, name)[positions] for name in names})


COLUMN_TYPES: Mapping[str, type] = {  # of an index
    field.name: np.int32 for field in dataclasses.fields(Index)
} | {
    **dict.fromkeys(("identities", "camera_names", "conditions"), str),
    **dict.fromkeys(("queries", "galleries"), bool),
}
