"""Skeletons of people who stand upright."""

import numpy as np

# Shares of width and height of a crop, in COCO's order.
STANDING = np.array(
    [
        *((0.50, 0.12), (0.53, 0.10), (0.47, 0.10), (0.57, 0.11), (0.43, 0.11)),
        *((0.66, 0.22), (0.34, 0.22), (0.72, 0.36), (0.28, 0.36), (0.73, 0.48), (0.27, 0.48)),
        *((0.60, 0.50), (0.40, 0.50), (0.61, 0.72), (0.39, 0.72), (0.62, 0.92), (0.38, 0.92)),
    ]
)


def standing(width: float, height: float, rng: np.random.Generator) -> np.ndarray:
    """Returns float32[17, 3], different each time, inside a frame and with confidence."""
    places = STANDING + rng.uniform(-0.03, 0.03, STANDING.shape)
    confidence = rng.uniform(0.1, 1, (17, 1))
    return np.hstack([places * (width, height), confidence]).astype(np.float32)
