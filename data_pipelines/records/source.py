"""What a dataset is packed from: the tracklets of its index, their frames and their skeletons."""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import frames as frames_lib
from data_pipelines.io import remote
from data_pipelines.io.progress import map_ahead, with_progress
from data_pipelines.records import contents
from data_pipelines.records.conditions import with_conditions
from data_pipelines.records.record import checked, make_record
from data_pipelines.skeletons import sources

# A tracklet to its frames, if they are packed already.
PackedFrames = Callable[[schema.Tracklet], frames_lib.Frames | None]


class Source:
    """The tracklets of a dataset, whose frames and skeletons are read when they are needed.

    Attributes:
      root: of the dataset.
      splits: the tracklets of each split, as they were given.
      without_skeletons: whether no skeletons are read.
      num_workers: threads that read and check frames.
      known_contents: the content of footage that was identified before, by its stamp.
      packed_frames: returns the frames that are taken from an earlier packing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        splits: Mapping[str, Sequence[schema.Tracklet]],
        *,
        keypoints: str | os.PathLike[str] | None = None,
        without_skeletons: bool = False,
        num_workers: int | None = None,
    ):
        """Opens no file yet.

        Args:
          root: of the dataset.
          splits: the tracklets of each split, in the order in which they are packed.
          keypoints: the skeletons (see `sources.open_keypoints`); None looks in the root.
          without_skeletons: read no skeletons, for a network that uses none.
          num_workers: threads that read and check frames; None uses one per core.

        Raises:
          InputError: `root` is a URL.
        """
        self.root = pathlib.Path(remote.local(root))
        self.splits = splits
        self.without_skeletons = without_skeletons
        self.num_workers = num_workers or os.cpu_count() or 1
        self.known_contents: dict[str, str] = {}
        self.packed_frames: PackedFrames = lambda tracklet: None
        self._keypoints = keypoints
        self._footage: dict[tuple[str, ...], contents.Footage] = {}  # of frames

    @functools.cached_property
    def tracklets(self) -> Mapping[str, Sequence[schema.Tracklet]]:
        """The tracklets of every split, with the conditions that `attributes.csv` lists.

        Raises as `checked` and `conditions.with_conditions` do.
        """
        return with_conditions(self.root, checked(self.root, self.splits))

    def all_tracklets(self) -> Iterator[schema.Tracklet]:
        """Yields the tracklets of one split after the other; raises as `tracklets` does."""
        return itertools.chain.from_iterable(self.tracklets.values())

    @functools.cached_property
    def keypoints_path(self) -> pathlib.Path:
        """The file or directory of skeletons; raises as `sources.find_keypoints` does."""
        return pathlib.Path(self._keypoints or sources.find_keypoints(self.root))

    def open_keypoints(self) -> sources.Keypoints:
        """Opens the skeletons, for a `with` statement."""
        if self.without_skeletons:
            return sources.NoSkeletons()
        return sources.open_keypoints(self.keypoints_path)

    def read(self, tracklets: Sequence[schema.Tracklet]) -> Generator[schema.Record, None, None]:
        """Yields the records of tracklets, with label -1.

        Threads read the frames of a few tracklets ahead, so that the memory does not grow with
        their number.

        Raises:
          FileNotFoundError: a frame or the skeletons are missing.
          InputError: a frame or a skeleton is broken, or no frame of the dataset has a skeleton.
        """
        with (
            self.open_keypoints() as keypoints,
            concurrent.futures.ThreadPoolExecutor(self.num_workers) as pool,
        ):
            self._require_a_skeleton(keypoints)
            ahead = map_ahead(pool, self._frames, tracklets, ahead=2 * self.num_workers)
            with contextlib.closing(ahead) as frames:
                for tracklet in tracklets:
                    yield make_record(tracklet, next(frames), keypoints)

    def _require_a_skeleton(self, keypoints: sources.Keypoints) -> None:
        if self.without_skeletons:
            return
        for tracklet in self.all_tracklets():
            if not sources.without_skeleton(keypoints.read(tracklet)).all():
                return
        trouble = sources.no_match(keypoints, tracklet.frames[0])
        raise InputError(f"{self.keypoints_path}: {trouble}")

    def _frames(self, tracklet: schema.Tracklet) -> frames_lib.Frames:
        """Returns the frames of a tracklet, from an earlier packing if they are the same."""
        self.footage_of(tracklet)  # now that its files are read anyway
        return self.packed_frames(tracklet) or frames_lib.read_frames(self.root, tracklet)

    def footage_of(self, tracklet: schema.Tracklet) -> contents.Footage:
        """Identifies a tracklet's footage, once."""
        frames = tracklet.frames
        if frames not in self._footage:
            self._footage[frames] = contents.identify(self.root, frames, self.known_contents)
        return self._footage[frames]

    def identify_footage(self) -> None:
        """Identifies all footage, in threads."""
        new = [one for one in self.all_tracklets() if one.frames not in self._footage]
        with concurrent.futures.ThreadPoolExecutor(self.num_workers) as pool:
            found = map_ahead(pool, self.footage_of, new, ahead=4 * self.num_workers)
            collections.deque(with_progress(found, len(new), "comparing footage"), maxlen=0)

    @property
    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of the index, the skeletons and the footage, to distinguish sources."""
        digest = hashlib.sha256()
        self.identify_footage()
        for tracklet in self.all_tracklets():
            digest.update(self.footage_of(tracklet).content.encode())
        return {**self.without_footage, "contents": digest.hexdigest()}

    @functools.cached_property
    def without_footage(self) -> dict[str, str]:
        """The part of `fingerprint` for which no footage is read."""
        digest = hashlib.sha256()
        for split, tracklets in self.tracklets.items():
            for tracklet in tracklets:
                digest.update(f"{split} {tracklet}\n".encode())
        return {
            "index": digest.hexdigest(),
            "keypoints": "none"
            if self.without_skeletons
            else sources.fingerprint(self.keypoints_path),
        }
