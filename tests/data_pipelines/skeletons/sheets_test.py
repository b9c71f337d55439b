"""Sheets of frames with their skeletons."""

import cv2
import numpy as np
import pytest

from data_pipelines import schema
from data_pipelines.skeletons import sheets

COLORS = ((40, 60, 210), (200, 100, 20))  # of frames; neither yellow, green nor gray
TILE_HEIGHT, TILE_WIDTH = 240, 120


class Points:
    """A source of skeletons: the left shoulder and the left hip, one below the other."""

    def read(self, tracklet):
        skeletons = np.zeros((len(tracklet.frames), 17, 3), np.float32)
        skeletons[:, 5] = 4.5, 9.5, 1
        skeletons[:, 11] = 4.5, 29.5, 1
        return skeletons


def write_tracklet(root, name: str, length: int, marked=(0,), size=(40, 10)) -> schema.Tracklet:
    frames = tuple(f"{name}/visible/1/w/{frame:03d}.png" for frame in range(length))
    for number, frame in enumerate(frames):
        (root / frame).parent.mkdir(parents=True, exist_ok=True)
        image = np.full((*size, 3), COLORS[number in marked], np.uint8)
        cv2.imwrite(str(root / frame), image[..., ::-1])
    return schema.Tracklet(schema.VISIBLE, name, 1, frames, 1)


def read(path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1].astype(int)


def test_frames_and_skeletons_are_enlarged_together(tmp_path):
    row = write_tracklet(tmp_path, "a", 30, marked=(1, 28))  # the middles of eighths
    (path,) = sheets.write_sheets(tmp_path, [row], Points(), tmp_path / "out")
    sheet = read(path)
    caption = sheet.shape[0] - TILE_HEIGHT
    assert sheet.shape[1] == 8 * TILE_WIDTH
    assert (sheet[:caption] > 200).any() and (sheet[0] < 30).all()  # a name on black
    first, second, *_, last = np.split(sheet[caption:], 8, axis=1)
    for tile, color in ((first, COLORS[1]), (second, COLORS[0]), (last, COLORS[1])):
        # 240 x 60 in the middle of 240 x 120; six pixels for one.
        assert abs(tile[120, 35] - color).max() < 12
        assert abs(tile[120, 85] - color).max() < 12
        assert abs(tile[:, 25] - 96).max() < 12 and abs(tile[:, 95] - 96).max() < 12
        _, green, blue = tile[60:180, 60].T  # the edge: x = 4.5, y from 9.5 to 29.5
        assert (green > 150).all() and (blue < 90).all()
        assert abs(tile[40, 60] - color).max() < 12 and abs(tile[200, 60] - color).max() < 12


@pytest.mark.parametrize("size", [(10, 40), (20, 200), (2000, 900)])
def test_wide_large_and_short_tracklets_fit(tmp_path, size):
    tracklet = write_tracklet(tmp_path, "a", 2, marked=(0, 1), size=size)
    (path,) = sheets.write_sheets(tmp_path, [tracklet], Points(), tmp_path / "out")
    tiles = read(path)[-TILE_HEIGHT:]
    assert abs(tiles[120, 8] - COLORS[1]).max() < 12
    assert abs(tiles[:, 2 * TILE_WIDTH + 8 :] - 96).max() < 12  # two frames, then nothing


def test_of_many_tracklets_a_sample_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "TRACKLETS", 8)
    rows = [write_tracklet(tmp_path, f"p{number:02d}", 1) for number in range(15)]
    drawn = []
    real_row = sheets._row
    monkeypatch.setattr(
        sheets, "_row", lambda *given: [drawn.append(given[1].identity), real_row(*given)][1]
    )
    paths = sheets.write_sheets(tmp_path, rows, Points(), tmp_path / "out")
    assert drawn == [f"p{number:02d}" for number in range(0, 15, 2)]
    assert [path.name for path in paths] == ["skeletons_1.jpg", "skeletons_2.jpg"]
    assert read(paths[0]).shape[0] == 3 * read(paths[1]).shape[0]


def test_positions_are_spread_evenly():
    for total in range(1, 12):
        for count in range(1, 14):
            chosen = sheets.evenly_spaced(total, count).tolist()
            assert len(chosen) == min(count, total) and chosen == sorted(set(chosen))
            assert chosen[0] >= 0 and chosen[-1] < total
            gaps = np.diff(chosen)
            assert not len(gaps) or gaps.max() - gaps.min() <= 1
            assert abs(chosen[0] - (total - 1 - chosen[-1])) <= 1  # as much before as after
    assert sheets.evenly_spaced(9, 1).tolist() == [4]
