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
        "no skeletons": {"model.guidance": "none", "model.pooling": "gem"},
        "frame level": {"model.guidance": "frame", "model.pooling": "gem"},
        "sequence level": {"model.guidance": "none", "model.pooling": "guided"},
        "STAR": {"model.guidance": "frame", "model.pooling": "guided"},
        "STAR without modality consistency": {"losses.modality_consistency": 0.0},
        "STAR without skeleton consistency": {"losses.skeleton_consistency": 0.0},
        "STAR without consistency losses": {
            "losses.modality_consistency": 0.0,
            "losses.skeleton_consistency": 0.0,
        },
        "STAR without style disturbance": {"augment.style": False},
        "no skeletons, no style disturbance": {
            "model.guidance": "none",
            "model.pooling": "gem",
            "augment.style": False,
        },
    }
