r"""Estimates the skeletons of a dataset with a pose model, for launch/prepare.py.

  python launch/footage/extract_skeletons.py --model=rtmpose-m --dataset=folder --source=people
  python launch/footage/extract_skeletons.py --model=vitpose-b --device=cuda --dataset=hitsz_vcm \
    --source=/datasets/HITSZ-VCM --output=skeletons.h5 --overlay=pictures
  python launch/footage/extract_skeletons.py --model=mine.onnx --udp --dataset=folder \
    --source=people

The model is a name, rtmpose-m, rtmpose-l, rtmpose-x, vitpose-b or blazepose, whose file is
downloaded once, or a file: top-down models for the 17 joints of COCO in ONNX (RTMPose or another
with SimCC outputs, HRNet, ViTPose or another with heatmaps), BlazePose or MoveNet in TFLite. Each
frame is treated as the box of one person. The skeletons go to one HDF5 file; --overlay draws some
of them. After an interruption the same command resumes. Needs pip install -e ".[pose]", for TFLite
models and blazepose ".[pose,pose-tflite]".
"""

from pathlib import Path

from absl import flags

from data_pipelines.datasets import DATASETS, find_dataset
from data_pipelines.errors import InputError
from launch import command

MODEL = command.define_path(
    "model",
    None,
    "The pose model: rtmpose-m, rtmpose-l, rtmpose-x, vitpose-b or blazepose, or a file, .onnx or "
    ".tflite.",
    required=True,
)
DATASET = command.define_required(
    "dataset", f"{', '.join(DATASETS)}, or package.module:object for one of your own."
)
SOURCE = command.define_path("source", None, "Root of the dataset.", required=True)
OUTPUT = command.define_path("output", None, "File to write; default: <source>/skeletons.h5.")
OVERLAY = command.define_path(
    "overlay", None, "Folder for pictures of some frames with their skeletons, for inspection."
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "Frames at a time, for a model with a dynamic batch size.", lower_bound=1
)
INPUT_SIZE = flags.DEFINE_string(
    "input_size", None, "HEIGHTxWIDTH such as 256x192, for an .onnx file with a dynamic input size."
)
UDP = flags.DEFINE_bool(
    "udp", None, "The .onnx file uses unbiased data processing, as ViTPose does."
)
DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "cuda"], "Where the model runs.")


def main() -> None:
    """Extracts the skeletons of the dataset that the flags name."""
    from data_pipelines.footage import extraction, pose_models
    from data_pipelines.skeletons import sheets, sources

    dataset = find_dataset(DATASET.value, needs="all_tracklets")
    model = pose_models.load_model(
        MODEL.value,
        batch_size=BATCH_SIZE.value,
        input_size=parse_size(INPUT_SIZE.value),
        udp=UDP.value,
        device=DEVICE.value,
    )
    source = Path(SOURCE.value)
    output = Path(OUTPUT.value or source / "skeletons.h5")
    tracklets = dataset.all_tracklets(source)
    try:
        num_frames = extraction.extract(model, source, tracklets, output)
    except KeyboardInterrupt:
        command.fail(f"interrupted; the same command resumes ({output}.partial)", 130)
    print(f"skeletons of {num_frames} frames: {output}")
    if OVERLAY.value is not None:
        with sources.open_keypoints(output) as keypoints:
            drawn = sheets.write_sheets(source, tracklets, keypoints, OVERLAY.value)
        print(
            f"pictures of {min(sheets.TRACKLETS, len(tracklets))} of {len(tracklets)} tracklets, "
            f"{sheets.FRAMES} frames of each: {drawn[0]} to {drawn[-1].name}"
        )


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Returns height and width from a text such as 256x192."""
    if text is None:
        return None
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise InputError(f"--input_size={text} must be HEIGHTxWIDTH, such as 256x192")
    return int(height), int(width)


if __name__ == "__main__":
    command.run(main)
