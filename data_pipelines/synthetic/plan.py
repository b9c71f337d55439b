"""Parameters and sizes of the synthetic dataset, and the plan: who is seen where, how long."""

import dataclasses

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.schema import INFRARED, VISIBLE

SPLITS = ("train", "test", "auxiliary")  # a split's position seeds its random numbers
PAIR_CAMERAS = 6  # pairs are seen by cameras 1 to this number
TRACKLET_FRAMES = 24  # a walk is cut into tracklets of this length, the last one shorter


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """The amount of data in one split.

    Attributes:
      identities: number of identities.
      cameras: the cameras are 1 to this number.
      visible_tracklets: minimum and maximum number of visible tracklets of an identity.
      infrared_tracklets: likewise.
      cameras_per_modality: cameras that see an identity in each modality, at most half of all.
      long_tracklets: how many tracklets per identity and modality surely have 12 frames or more.
    """

    identities: int
    cameras: int
    visible_tracklets: tuple[int, int]
    infrared_tracklets: tuple[int, int]
    cameras_per_modality: int
    long_tracklets: int


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """All parameters of the generated dataset.

    Attributes:
      train: how much training data.
      test: how much test data.
      height: of a stored frame, pixels.
      width: of a stored frame, pixels.
      difficulty: scales what makes pictures hard: noise, blur, darkness, the shares below, the
        spread of viewpoints, the background's contrast. 0 is a studio; 1 the default.
      skeleton_variation: scales what makes skeletons less specific to an identity: how much the
        bones' apparent lengths, the gait and the box's aspect vary between tracklets.
      occluded_share: share of the tracklets that something passes in front of, at difficulty 1.
      low_light_share: share of the dark tracklets, at difficulty 1.
      low_resolution_share: share of the coarse tracklets, at difficulty 1.
      motion_blur_share: share of the motion-blurred tracklets, at difficulty 1.
      box_jitter: how far the detector's box strays, as a share of the frame, at difficulty 1.
      keypoint_error: standard deviation of a visible joint, as a share of the height.
      swapped_share: share of the frames in which the pose estimator swaps left and right legs
        (and, independently, arms).
      missed_share: share of the frames without a skeleton; ten times as large if half hidden.
    """

    train: SplitConfig
    test: SplitConfig
    height: int = 144
    width: int = 72
    difficulty: float = 1.0
    skeleton_variation: float = 1.0
    occluded_share: float = 0.3
    low_light_share: float = 0.12
    low_resolution_share: float = 0.12
    motion_blur_share: float = 0.12
    box_jitter: float = 0.02
    keypoint_error: float = 0.012
    swapped_share: float = 0.03
    missed_share: float = 0.01


SIZES = {
    "tiny": SyntheticConfig(
        train=SplitConfig(6, 6, (2, 3), (2, 2), 2, 2),
        test=SplitConfig(6, 12, (1, 2), (1, 2), 1, 1),
        height=96,
        width=48,
    ),
    "demo": SyntheticConfig(
        train=SplitConfig(300, 6, (2, 3), (2, 3), 2, 2),
        test=SplitConfig(60, 12, (2, 3), (2, 3), 2, 1),
        # Viewpoints, noise and blur are mild, so that a small network learns within minutes.
        # Occlusion, darkness, low resolution and motion blur, where skeletons could help, are about
        # half as frequent as at difficulty 1.
        difficulty=0.3,
        occluded_share=0.5,
        low_light_share=0.2,
        low_resolution_share=0.2,
        motion_blur_share=0.2,
    ),
    "full": SyntheticConfig(
        train=SplitConfig(500, 6, (8, 17), (6, 14), 3, 2),
        test=SplitConfig(427, 12, (8, 18), (8, 16), 3, 2),
        height=288,
        width=144,
    ),
}


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Returns a random generator that depends only on the arguments."""
    return np.random.default_rng([seed, *purpose.encode(), *numbers])


@dataclasses.dataclass(frozen=True)
class PlannedTracklet:
    """A tracklet before it is rendered.

    Attributes:
      split: one of SPLITS.
      row: 1-based number in its split; the two tracklets of a pair share it.
      identity: its number.
      modality: VISIBLE or INFRARED.
      camera: its number.
      track: 1-based number of the tracklet of this identity, modality and camera.
      first_frame: number of the first frame; numbers continue through a camera's tracklets, since
        the path of a frame does not name its track.
      num_frames: number of frames.
      paired: whether it is one of an aligned pair: the same walk at the same moments, seen in both
        modalities by the same camera.
    """

    split: str
    row: int
    identity: int
    modality: int
    camera: int
    track: int
    first_frame: int
    num_frames: int
    paired: bool = False

    @property
    def frames(self) -> range:
        """The numbers of its frames."""
        return range(self.first_frame, self.first_frame + self.num_frames)


def plan(config: SyntheticConfig, seed: int) -> list[PlannedTracklet]:
    """Returns the tracklets to render, the training split first."""
    planned: list[PlannedTracklet] = []
    identity = 0
    for split in ("train", "test"):
        sizes: SplitConfig = getattr(config, split)
        if 2 * sizes.cameras_per_modality > sizes.cameras:
            raise InputError(
                f"{split}: {sizes.cameras_per_modality} cameras for each modality need "
                f"{2 * sizes.cameras_per_modality} cameras, but there are {sizes.cameras}"
            )
        row = 0
        for _ in range(sizes.identities):
            identity += 1
            rng = generator(seed, "plan", identity)
            cameras = rng.permutation(sizes.cameras) + 1  # no camera serves both modalities
            for modality, bounds in (
                (VISIBLE, sizes.visible_tracklets),
                (INFRARED, sizes.infrared_tracklets),
            ):
                own, cameras = np.split(cameras, [sizes.cameras_per_modality])
                lengths = _plan_lengths(rng, sorted(own.tolist()), bounds, sizes.long_tracklets)
                for camera, tracklets in lengths.items():
                    first_frame = 1
                    for track, num_frames in enumerate(tracklets, start=1):
                        row += 1
                        planned.append(
                            PlannedTracklet(
                                split,
                                row,
                                identity,
                                modality,
                                camera,
                                track,
                                first_frame,
                                num_frames,
                            )
                        )
                        first_frame += num_frames
    return planned


def plan_pairs(config: SyntheticConfig, seed: int) -> list[PlannedTracklet]:
    """Returns the aligned pairs to render of the people of `plan`, the training split first.

    An identity has as many pairs as visible tracklets, seen by the cameras of both modalities. The
    auxiliary split has as many further people as the test split, with one pair each.
    """
    planned: list[PlannedTracklet] = []
    identity = 0
    for split in SPLITS:
        sizes = config.train if split == "train" else config.test
        bounds = (1, 1) if split == "auxiliary" else sizes.visible_tracklets
        row = 0
        for _ in range(sizes.identities):
            identity += 1
            rng = generator(seed, "plan", identity)
            cameras = rng.permutation(PAIR_CAMERAS)[: 2 * sizes.cameras_per_modality] + 1
            lengths = _plan_lengths(rng, sorted(cameras.tolist()), bounds, sizes.long_tracklets)
            for camera, tracklets in lengths.items():
                first_frame = 1
                for track, num_frames in enumerate(tracklets, start=1):
                    row += 1
                    planned += [
                        PlannedTracklet(
                            split,
                            row,
                            identity,
                            modality,
                            camera,
                            track,
                            first_frame,
                            num_frames,
                            paired=True,
                        )
                        for modality in (VISIBLE, INFRARED)
                    ]
                    first_frame += num_frames
    return planned


def _plan_lengths(
    rng: np.random.Generator, cameras: list[int], bounds: tuple[int, int], long_tracklets: int
) -> dict[int, list[int]]:
    """Distributes an identity's tracklets over cameras; each camera's last one may be short."""
    total = int(rng.integers(bounds[0], bounds[1] + 1))
    cameras = cameras[:total]
    lengths: dict[int, list[int]] = {}
    long_left = long_tracklets
    for position, camera in enumerate(cameras):
        count = total // len(cameras) + (position < total % len(cameras))
        whole = count - 1
        long_left -= whole
        shortest = 12 if long_left > 0 else 4
        long_left -= 1
        lengths[camera] = [TRACKLET_FRAMES] * whole + [int(rng.integers(shortest, 25))]
    return lengths
