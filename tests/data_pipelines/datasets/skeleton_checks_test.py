"""What is systematically wrong with skeletons."""

import bodies
import numpy as np
import pytest

from data_pipelines.datasets.skeleton_checks import FEWEST, Sample, find_fault

WIDTH, HEIGHT = 60, 160


def people(count: int = 12, size=(WIDTH, HEIGHT)) -> list[Sample]:
    rng = np.random.default_rng(0)
    samples = [Sample(f"{n}.jpg", size, bodies.standing(*size, rng)) for n in range(count)]
    for sample in samples:
        sample.skeleton[:, 2] = np.maximum(sample.skeleton[:, 2], 0.55)  # all are confident
    return samples


def moved(samples, move, count: int | None = None) -> list[Sample]:
    """Returns samples of which the first `count`, or all, have been moved by a function of x, y."""
    result = list(samples)
    for number, sample in enumerate(samples[:count]):
        skeleton = sample.skeleton.copy()
        skeleton[:, :2] = np.stack(move(*skeleton[:, :2].T), axis=-1)
        result[number] = sample._replace(skeleton=skeleton)
    return result


def test_upright_people_are_fine():
    for size in ((WIDTH, HEIGHT), (300, 300), (16, 32), (1920, 1080)):
        assert find_fault(people(size=size)) is None
    assert find_fault([]) is None
    assert find_fault(people(1)) is None


FAULTS = {
    "swapped": (lambda x, y: (y, x), "have x and y swapped", "store x first"),
    "shares": (
        lambda x, y: (x / WIDTH, y / HEIGHT),
        "lie in the upper left corner of their frames, like shares of width and height",
        "use x and y in pixels",
    ),
    "of the model's input": (
        lambda x, y: (x * 192 / WIDTH, y * 256 / HEIGHT),
        "do not lie in their frames",
        "not of another size of it",
    ),
    "1.25 times as large": (
        lambda x, y: (1.25 * x, 1.25 * y),
        "do not lie in their frames",
        "not of another size",
    ),
    "before the crop": (
        lambda x, y: (x + 500, y + 300),
        "do not lie in their frames",
        "before it was cropped",
    ),
    "half as large": (
        lambda x, y: (x / 2, y / 2),
        "like those of smaller pictures",
        "in pixels of the frame",
    ),
    "y from below": (
        lambda x, y: (x, HEIGHT - y),
        "are upside down, feet above the head",
        "y from their top",
    ),
}


@pytest.mark.parametrize(("move", "what", "advice"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_all_is_named(move, what, advice):
    fault = find_fault(moved(people(), move))
    assert what in fault
    assert advice in fault
    assert fault.startswith("12 of 12 skeletons of a sample ")
    assert "such as that of 0.jpg (60 x 160 pixels), where x is " in fault
    assert "\n" not in fault


@pytest.mark.parametrize(("move", "what", "advice"), FAULTS.values(), ids=FAULTS)
def test_a_few_such_skeletons_are_accepted(move, what, advice):
    assert find_fault(moved(people(), move, 2)) is None


def test_people_in_turned_frames_are_not_swapped():
    samples = [
        sample._replace(size=(HEIGHT, WIDTH)) for sample in moved(people(), lambda x, y: (y, x))
    ]
    fault = find_fault(samples)
    assert "lie on their side" in fault
    assert "store frames upright" in fault


def test_half_of_the_joints_outside_are_a_fault():
    """590 of 1190 confident joints, here of 70 skeletons."""
    samples = moved(people(70), lambda x, y: (x + WIDTH, y), 35)
    samples[0].skeleton[:5, 0] -= WIDTH
    fault = find_fault(samples)
    assert "do not lie in their frames (590 of 1190 confident joints are outside)" in fault


def test_coordinates_of_the_first_faulty_skeleton_are_reported():
    samples = people(6)
    for sample in samples:
        sample.skeleton[:, 0] = 200
        sample.skeleton[:, 1] = np.arange(17)
    fault = find_fault(samples)
    assert "6 of 6 skeletons of a sample do not lie in their frames (102 of 102 " in fault
    assert "where x is 200 to 200 and y 0 to 16; " in fault


# Where OpenPose and Human3.6M have the joints of COCO, written out by name.
BODY = "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow "
BODY += "right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle "
BODY += "right_ankle neck hips spine top"
ARMS = "right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist"
LEGS = "right_hip right_knee right_ankle left_hip left_knee left_ankle"
ORDERS = {
    "OpenPose's 18 joints": f"nose neck {ARMS} {LEGS} right_eye left_eye right_ear",
    "OpenPose's BODY_25": f"nose neck {ARMS} hips {LEGS} right_eye left_eye",
    "Human3.6M": f"hips {LEGS} spine neck nose top left_shoulder left_elbow left_wrist "
    "right_shoulder right_elbow right_wrist",
}


def in_order(samples, names: str) -> list[Sample]:
    def reordered(skeleton: np.ndarray) -> np.ndarray:
        neck, hips = skeleton[5:7].mean(axis=0), skeleton[11:13].mean(axis=0)
        more = [neck, hips, (neck + hips) / 2, skeleton[0] * [1, 0.5, 1]]
        joints = dict(zip(BODY.split(), [*skeleton, *more], strict=True))
        return np.stack([joints[name] for name in names.split()])

    return [sample._replace(skeleton=reordered(sample.skeleton)) for sample in samples]


@pytest.mark.parametrize(("order", "names"), ORDERS.items())
@pytest.mark.parametrize("certain", [True, False])
def test_the_order_of_joints_is_recognized(order, names, certain):
    samples, rng = people(30), np.random.default_rng(1)
    for sample in samples:
        if not certain:
            sample.skeleton[rng.permutation(17)[:4], 2] = 0.1
    fault = find_fault(in_order(samples, names))
    assert f"seem to have their joints in the order of {order}, such as that of" in fault
    assert "store them in COCO's order: nose, left eye" in fault
    sideways = moved(samples, lambda x, y: (y, x))  # does not depend on the direction
    assert order in find_fault(in_order(sideways, names))


def test_an_unknown_order_is_a_fault():
    order = np.random.default_rng(2).permutation(17)
    samples = [sample._replace(skeleton=sample.skeleton[order]) for sample in people(30)]
    assert "another order than COCO's: bones are far too long" in find_fault(samples)


def test_people_who_are_cut_off_are_fine():
    """What the crop does not show is outside, with half the confidence at most, or missing."""
    for confidence in (0, 0.3):
        samples = people()
        for sample in samples:
            sample.skeleton[:, 2] = 1
            sample.skeleton[11:, 1] += 0.6 * HEIGHT
            sample.skeleton[11:, 2] = confidence
        assert find_fault(samples) is None


def test_people_who_sit_or_bend_are_fine():
    def sit(x, y):
        thighs, shins = slice(13, 15), slice(15, 17)
        y = y.copy()
        y[thighs] = y[11:13] + 4
        y[shins] = y[thighs] + 30
        return x, y

    assert find_fault(moved(people(), sit)) is None
    assert find_fault(moved(people(), lambda x, y: (x + 0.15 * (y - HEIGHT / 2), y))) is None


def test_few_skeletons_say_nothing_about_people():
    samples = moved(people(FEWEST - 1), lambda x, y: (x, HEIGHT - y))
    assert find_fault(samples) is None
