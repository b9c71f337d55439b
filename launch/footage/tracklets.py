r"""Finds the people in a raw video and writes them as footage, for --dataset=folder.

  python launch/footage/tracklets.py --video=cam1.mp4 --modality=visible --camera=door \
    --output=people
  python launch/footage/tracklets.py --video=cam2.mp4 --modality=infrared --camera=yard \
    --output=people --detector=yolox.onnx --device=cuda --every=3

People are detected and tracked; each tracklet goes to
<output>/unknown/<modality>/<camera>/<track>, as a crop for each frame. Where people overlap, or
identities are ambiguous, a tracklet ends and another one begins.
<output>/tracks/<modality>/<camera>.jpg shows the tracklets, and the .csv beside it lists their
boxes. To train on them, name the people in <output>/identities.csv. The detector is a YOLOX model:
a name, whose file is downloaded once, or an .onnx file. After an interruption the same command
continues. Needs onnxruntime: pip install -e ".[pose]".
"""

from absl import flags

from data_pipelines import schema
from launch import command

VIDEO = command.define_path("video", None, "The video, .mp4, .mov, .avi or .mkv.", required=True)
MODALITY = flags.DEFINE_enum(
    "modality", None, list(schema.MODALITIES), "Modality of the camera. Required.", required=True
)
CAMERA = command.define_required(
    "camera", "Name of the camera; each video of a modality needs its own."
)
OUTPUT = command.define_path("output", None, "Folder of footage to write to.", required=True)
DETECTOR = command.define_path(
    "detector", "yolox-m", "yolox-tiny, yolox-m, yolox-x, or an .onnx file of a YOLOX model."
)
DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "cuda"], "Where the detector runs.")
MIN_SCORE = flags.DEFINE_float(
    "min_score", 0.5, "Minimum score of a detection that begins a track."
)
MIN_FRAMES = flags.DEFINE_integer(
    "min_frames", 10, "Minimum length of a tracklet; shorter ones are left out."
)
MARGIN = flags.DEFINE_float("margin", 0.1, "Margin around each box, as a share of its size.")
EVERY = flags.DEFINE_integer("every", 1, "Use every N-th frame.")


def main() -> None:
    """Writes the tracklets of the video that the flags name."""
    from data_pipelines.footage import detection, tracklets

    summary = tracklets.extract(
        VIDEO.value,
        OUTPUT.value,
        detection.load_detector(DETECTOR.value, device=DEVICE.value),
        modality=MODALITY.value,
        camera=CAMERA.value,
        min_score=MIN_SCORE.value,
        min_frames=MIN_FRAMES.value,
        margin=MARGIN.value,
        every=EVERY.value,
    )
    written = "" if summary.is_new else " (written earlier)"
    print(f"{summary.tracklets} tracklets, {summary.frames} frames: {summary.folder}{written}")
    print(f"look at {summary.sheet}; name people in {summary.identities}")


if __name__ == "__main__":
    command.run(main)
