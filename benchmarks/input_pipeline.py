"""Benchmarks packing, opening and reading, against a plain PyTorch-style loader.

    python -m benchmarks.input_pipeline SOURCE DATASET_DIR

SOURCE has the layout of HITSZ-VCM, with skeletons.h5, and DATASET_DIR is what packing it returned.
The plain loader does what PyTorch code for this task does in a worker: for every tracklet it opens
the HDF5 file of the skeletons, and for every frame the JPEG file with Pillow, which it converts to
normalized float32. The loaders read the same batches on one thread each, interleaved, so that a
busy machine slows all of them alike; the fastest round of each counts, in seconds of processor
time. Bare decoding decodes the same JPEG bytes, held in memory, into one buffer.
"""

import argparse
import dataclasses
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import h5py
import numpy as np
import PIL.Image
import simplejpeg

from data_pipelines import loader, sampling, schema
from data_pipelines.datasets import hitsz_vcm
from data_pipelines.records import packing
from data_pipelines.records.dataset import Split, open_dataset
from data_pipelines.records.source import Source

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=pathlib.Path, help="root of the dataset")
    parser.add_argument("dataset_dir", type=pathlib.Path, help="the same dataset, packed")
    parser.add_argument("--steps", type=int, default=8, help="batches per round (default: 8)")
    parser.add_argument("--turns", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument(
        "--identities", type=int, default=8, help="identities per batch (default: 8)"
    )
    parser.add_argument("--tracklets", type=int, default=2, help="of each modality (default: 2)")
    parser.add_argument("--frames", type=int, default=12, help="frames per tracklet (default: 12)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(288, 144), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument(
        "--pack", type=int, default=1024, help="tracklets that are packed (default: 1024)"
    )
    args = parser.parse_args()
    batch = {
        "identities_per_batch": args.identities,
        "tracklets_per_identity": args.tracklets,
        "seed": 0,
    }
    clip = {"clip_length": args.frames, "frame_size": tuple(args.size)}
    spec = sampling.ClipSpec(args.frames, tuple(args.size))
    drawn = sampling.BatchSpec(0, args.identities, args.tracklets)

    start = time.monotonic()
    before = resident_memory()
    dataset = open_dataset(args.dataset_dir)
    split, _ = dataset.split("train"), dataset.split("test")
    index, stored = split.index, split.records
    print(
        f"index: {time.monotonic() - start:.2f} s, {resident_memory() - before:.0f} MiB for "
        f"{len(index.rows)} training tracklets and the test split"
    )
    plans = [sampling.sample_batch(index, step=step, **batch) for step in range(args.steps)]

    def star_jax(split: Split = split) -> None:
        for _ in loader.train_batches(split, spec, drawn, range(args.steps), num_threads=1):
            pass

    def plain() -> None:
        for step, plan in enumerate(plans):
            list(plain_batch(args.source, stored_paths, plan, step, **clip))

    def plain_uint8() -> None:
        for step, plan in enumerate(plans):
            list(plain_batch(args.source, stored_paths, plan, step, **clip, as_float=False))

    buffer = np.empty((*args.size, 3), np.uint8)
    jpegs = [jpeg for step, plan in enumerate(plans) for jpeg in chosen(stored, plan, step, clip)]
    stored_paths = {
        modality: {
            int(position): stored[int(position)]["frame_ids"]
            for plan in plans
            for position in (plan.visible, plan.infrared)[modality]
        }
        for modality in (schema.VISIBLE, schema.INFRARED)
    }

    def bare() -> None:
        for jpeg in jpegs:
            if simplejpeg.decode_jpeg_header(jpeg)[:2] == tuple(args.size):
                simplejpeg.decode_jpeg(jpeg, buffer=buffer)
            else:
                simplejpeg.decode_jpeg(jpeg)

    works = {
        "star_jax": star_jax,
        "bare decoding": bare,
        "plain loader": plain,
        "plain loader, left as uint8": plain_uint8,
    }
    seconds = dict.fromkeys(works, np.inf)
    for _ in range(args.turns):
        for name, work in works.items():
            seconds[name] = min(seconds[name], core_seconds(work))
    for name, fastest in seconds.items():
        print(f"{name}: {len(jpegs) / fastest:.0f} frames/s per core")
    for name in ("plain loader", "plain loader, left as uint8"):
        print(f"star_jax / {name}: {seconds[name] / seconds['star_jax']:.2f}")
    print(f"star_jax / bare decoding: {seconds['bare decoding'] / seconds['star_jax']:.2f}")
    print_shares(star_jax, split)

    memory = []
    for part in range(3):
        steps = range(part * 100, (part + 1) * 100)
        for _ in loader.train_batches(split, spec, drawn, steps):
            pass
        memory.append(resident_memory())
    print(f"memory after 100, 200, 300 batches: {', '.join(f'{m:.0f}' for m in memory)} MiB")
    print_packing(args.source, args.pack)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak of this process: {peak:.0f} MiB")


def chosen(
    stored: Sequence[schema.Record], plan: sampling.BatchPlan, step: int, clip: dict[str, Any]
) -> Iterator[bytes]:
    """Yields the JPEG files of the frames of a batch."""
    for modality, positions in enumerate((plan.visible, plan.infrared)):
        for row, position in enumerate(positions):
            jpegs = stored[int(position)]["frames"]
            rng = sampling.row_generator(0, step, row, modality)
            for frame in sampling.training_frames(len(jpegs), clip["clip_length"], rng):
                yield jpegs[frame]


def plain_batch(
    source: pathlib.Path,
    paths: dict[int, dict[int, list[str]]],
    plan: sampling.BatchPlan,
    step: int,
    clip_length: int,
    frame_size: tuple[int, int],
    as_float: bool = True,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Loads both modalities of a batch as PyTorch code for this task does."""
    height, width = frame_size
    for modality, positions in enumerate((plan.visible, plan.infrared)):
        clips, skeletons = [], []
        for row, position in enumerate(positions):
            names = paths[modality][int(position)]
            rng = sampling.row_generator(0, step, row, modality)
            frames, joints = [], []
            with h5py.File(source / "skeletons.h5", "r") as file:
                for number in sampling.training_frames(len(names), clip_length, rng):
                    image = PIL.Image.open(source / names[number]).convert("RGB")
                    if image.size != (width, height):
                        image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
                    frame = np.asarray(image)
                    if as_float:
                        frame = (frame.astype(np.float32) / 255 - MEAN) / STD
                    frames.append(frame)
                    key = "/".join(names[number].removesuffix(".jpg").split("/")[-4:])
                    joints.append(file[key][()] if key in file else np.zeros((17, 3)))
            clips.append(np.stack(frames))
            skeletons.append(np.stack(joints))
        yield np.stack(clips), np.stack(skeletons)


def print_shares(work: Callable[[Split], None], split: Split) -> None:
    """Prints where the time of the loader goes, on one thread."""
    spent = {"decoding": 0.0, "reading records": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    class TimedRecords(Sequence[schema.Record]):
        def __init__(self, stored: Sequence[schema.Record]):
            self.read = timed("reading records", stored.__getitem__)

        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, position: Any) -> Any:
            return self.read(position)

    decode = timed("decoding", simplejpeg.decode_jpeg)
    with mock.patch.object(simplejpeg, "decode_jpeg", decode):
        start, core = time.perf_counter(), time.process_time()
        work(dataclasses.replace(split, records=TimedRecords(split.records)))
        total, core = time.perf_counter() - start, time.process_time() - core
    shares = {name: seconds / total for name, seconds in spent.items()}
    shares["waiting (not on a core)"] = max(0.0, 1 - core / total)
    shares["copying and the rest"] = 1 - sum(shares.values())
    print("shares: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()))


def print_packing(source: pathlib.Path, num_tracklets: int) -> None:
    """Packs some tracklets of the training split into a temporary folder, on one thread."""
    tracklets = hitsz_vcm.read_index(source).train[:num_tracklets]
    part = Source(source, {"train": tracklets}, num_workers=1)
    with tempfile.TemporaryDirectory() as folder:
        frames = sum(len(tracklet.frames) for tracklet in tracklets)
        _ = part.fingerprint  # hashes all skeletons, however few are packed
        start, core = time.monotonic(), time.process_time()
        packed = packing.prepare(part, folder, "part/1.0.0")
        seconds, core = time.monotonic() - start, time.process_time() - core
        size = sum(path.stat().st_size for path in packed.iterdir()) / 1e6
    print(
        f"packing: {frames} frames, {size:.0f} MB: {frames / core:.0f} frames/s and "
        f"{size / core:.0f} MB/s per core ({seconds:.1f} s, {core:.1f} s on cores)"
    )


def core_seconds(work: Callable[[], None]) -> float:
    """Returns the processor time of all threads that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def resident_memory() -> float:
    """Returns the resident memory of this process, MiB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
