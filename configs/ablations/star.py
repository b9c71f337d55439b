"""What each part of STAR contributes: the grid of launch/ablate.py.

Command:
  python launch/ablate.py --config=configs/star_synthetic_demo.py \
    --grid=configs/ablations/star.py --seeds=5 --output=runs/ablation
"""

from typing import Any


def get_grid() -> dict[str, dict[str, Any]]:
    """Returns the variants by name; the first is the baseline that the others are compared to.

    Each variant is a dictionary of those config keys that it changes.
    """
    return {
        "no_skeletons": {"model.guidance": "none", "model.pooling": "gem"},
        "frame_level": {"model.guidance": "frame", "model.pooling": "gem"},
        "sequence_level": {"model.guidance": "none", "model.pooling": "guided"},
        "STAR": {"model.guidance": "frame", "model.pooling": "guided"},
        "STAR_without_modality_consistency": {"losses.modality_consistency": 0.0},
        "STAR_without_skeleton_consistency": {"losses.skeleton_consistency": 0.0},
        "STAR_without_consistency_losses": {
            "losses.modality_consistency": 0.0,
            "losses.skeleton_consistency": 0.0,
        },
        "STAR_without_style_disturbance": {"augment.style": False},
        "no_skeletons_no_style_disturbance": {
            "model.guidance": "none",
            "model.pooling": "gem",
            "augment.style": False,
        },
    }
