"""Frames per second per core: the training loader against Pillow doing the same work.

    python -m benchmarks.loader DATASET_DIR

Both read the same records, draw the same frames and fill the same batches; they take turns, so that
a busy machine slows both alike, and the fastest turn of each counts.
"""

import argparse
import io
import time
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

from data_pipelines import loader, records, sampling, schema


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset_dir", help="the directory that preparing a dataset returned")
    parser.add_argument("--steps", type=int, default=4, help="batches a turn (default: 4)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--identities", type=int, default=8, help="identities a batch (default: 8)")
    parser.add_argument("--tracklets", type=int, default=2, help="of each modality (default: 2)")
    parser.add_argument("--frames", type=int, default=12, help="frames a tracklet (default: 12)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(288, 144), metavar=("HEIGHT", "WIDTH")
    )
    args = parser.parse_args()
    index = records.open_index(args.dataset_dir, "train")
    stored = records.open_records(args.dataset_dir, "train")
    batch = {
        "identities_per_batch": args.identities,
        "tracklets_per_identity": args.tracklets,
        "seed": 0,
    }

    def star_jax() -> None:
        batches = loader.train_batches(
            args.dataset_dir,
            clip_length=args.frames,
            frame_size=tuple(args.size),
            start_step=0,
            num_steps=args.steps,
            num_threads=1,
            **batch,
        )
        for _ in batches:
            pass

    def pillow() -> None:
        for step in range(args.steps):
            plan = sampling.sample_batch(index, step=step, **batch)
            for modality, positions in enumerate((plan.visible, plan.infrared)):
                pillow_clips(stored, positions, modality, step, args.frames, tuple(args.size))

    frames = args.steps * args.identities * args.tracklets * 2 * args.frames
    loaders = {"star_jax": star_jax, "pillow": pillow}
    seconds = {name: np.inf for name in loaders}
    for _ in range(args.turns):
        for name, load in loaders.items():
            seconds[name] = min(seconds[name], core_seconds(load))
    for name, fastest in seconds.items():
        print(f"{name}: {frames / fastest:.0f} frames/s a core")
    print(f"star_jax loads {seconds['pillow'] / seconds['star_jax']:.2f} times as many")


def pillow_clips(
    stored: Sequence[schema.Record],
    positions: np.ndarray,
    modality: int,
    step: int,
    clip_length: int,
    frame_size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Loads one modality of a batch as a plain PyTorch dataset would, with Pillow."""
    height, width = frame_size
    frames = []
    keypoints = []
    for row, position in enumerate(positions):
        record = stored[int(position)]
        rng = sampling.row_generator(0, step, row, modality)
        chosen = sampling.training_frames(len(record["frames"]), clip_length, rng)
        for frame in chosen:
            image = PIL.Image.open(io.BytesIO(record["frames"][frame])).convert("RGB")
            if image.size != (width, height):
                image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
            frames.append(np.asarray(image))
        scale = np.array([width / record["width"], height / record["height"], 1], np.float32)
        keypoints.append(record["keypoints"][chosen] * scale)
    return np.stack(frames), np.stack(keypoints)


def core_seconds(work: Callable[[], None]) -> float:
    """Returns the processor time of all threads that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
