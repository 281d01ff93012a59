import tracemalloc

import numpy as np
from matplotlib.image import imread

from rare_lightning.evaluation.figures import COLORS, plot_dice_by_resolution, plot_montage, plot_preview, save_figure
from rare_lightning.evaluation.protocol import Row
from rare_lightning.evaluation.slices import Slice
from rare_lightning.evaluation.tables import summarize
from rare_lightning.metrics import Scores


def piece(level, prediction):
    truth = np.zeros((20, 30), np.uint8)
    truth[5:15, 5:20] = 1
    truth[8:12, 10:15] = 3
    image = np.random.default_rng(level).normal(size=(20, 30))
    return Slice(level, "1x1x1", image, truth, prediction(truth), 0.5, 1.0)


def count(path, color):
    """Pixels whose hue is that of a class color laid over grey."""
    pixels = imread(path)[..., :3]
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    chroma, wanted = pixels - pixels.mean(-1, keepdims=True), rgb - rgb.mean()
    return int((np.abs(chroma - 0.6 * wanted).max(-1) < 0.02).sum())


def test_montage_paints_every_class_in_its_own_color(tmp_path):
    names = ["background", "a", "b", "c"]
    for name, change in (("good", np.copy), ("empty", np.zeros_like)):
        slices = [piece(level, change) for level in (0, 1)]
        save_figure(plot_montage([("median: x", slices), ("worst: y", slices)], names), tmp_path / f"{name}.png")
    for color, present in zip(COLORS, (True, False, True), strict=False):
        good, empty = (count(tmp_path / f"{name}.png", color) for name in ("good", "empty"))
        # Truth and prediction hold the class in one, the truth alone in the other.
        assert (good > 1.5 * empty > 0) is present


def test_dice_by_resolution_draws_each_class(tmp_path):
    rows = [
        Row("a", level, (2.0**level,) * 3, truth, name, Scores(dice, 1, 1, 0))
        for level in (0, 1)
        for truth in ("level", "fine")
        for name, dice in (("x", 0.9), ("y", 0.3))
    ]
    plot_dice_by_resolution(summarize(rows), tmp_path / "one.png")
    plot_dice_by_resolution(summarize(sorted(rows, key=lambda row: -row.level)), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    pixels = imread(tmp_path / "one.png")[..., :3]
    for color in COLORS[:2]:
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(pixels - rgb).max(-1) < 0.02).sum() > 50


def test_levels_of_one_spacing_are_drawn_beside_each_other(tmp_path):
    """As where a tool brings its answers to low-resolution scans to the full resolution."""
    for name, spacings in (("same", (1.0, 1.0)), ("other", (1.0, 2.0))):
        rows = [
            Row("a", level, (mm,) * 3, "fine", "x", Scores(0.9 - 0.4 * level, 1, 1, 0))
            for level, mm in enumerate(spacings)
        ]
        plot_dice_by_resolution(summarize(rows), tmp_path / f"{name}.png")
    same, other = (imread(tmp_path / f"{name}.png") for name in ("same", "other"))
    rows = np.flatnonzero((same != other).any(axis=(1, 2)))
    assert rows.min() > 0.8 * len(same)  # the tick's label below the axes, and no line


def test_a_preview_copies_no_volume(tmp_path):
    """Which of a large scan takes seconds."""
    image = np.zeros((256, 256, 256), np.float32).transpose(2, 0, 1)
    image[:, :, 128:] = np.linspace(0, 1, 128)
    labels = np.zeros(image.shape, np.uint8)
    labels[100:140, 100:140, 100:140] = 1
    tracemalloc.start()
    try:
        plot_preview(image, labels, np.eye(4), np.eye(4), ["background", "a"], tmp_path / "preview.png")
        assert tracemalloc.get_traced_memory()[1] < 0.7 * image.nbytes
    finally:
        tracemalloc.stop()
    assert imread(tmp_path / "preview.png").std() > 0


def test_the_window_of_a_large_preview_is_that_of_its_scan(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10:20, 12:22, 14:24] = 1
    for name, times in (("small", 1), ("large", 4)):
        image, mask = (array.repeat(times, 0).repeat(times, 1).repeat(times, 2) for array in (values, labels))
        affine = np.diag([1 / times] * 3 + [1])
        plot_preview(image, mask, affine, affine, ["background", "a"], tmp_path / f"{name}.png")
    small, large = (imread(tmp_path / f"{name}.png")[..., :3] for name in ("small", "large"))
    assert np.abs(small - large).mean() < 0.01


def test_labels_lie_over_the_scan_wherever_their_grid_begins(tmp_path):
    image = np.random.default_rng(0).normal(size=(20, 22, 24)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[6:12, 8:16, 4:12] = 1
    turn = np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, -7], [0, 0, 1.5, 2], [0, 0, 0, 1]])
    shifted = turn.copy()
    shifted[:3, 3] = (turn @ (-4, 2, -6, 1))[:3]  # the labels' grid begins so many voxels away
    larger = np.zeros((30, 30, 40), np.uint8)
    larger[4:24, :20, 6:30] = labels[:, 2:]
    for name, array, affine in (("own", labels, turn), ("other", larger, shifted)):
        plot_preview(image, array, turn, affine, ["background", "a"], tmp_path / f"{name}.png")
    own, other = (imread(tmp_path / f"{name}.png") for name in ("own", "other"))
    assert np.abs(own - other).mean() < 1e-3


def test_a_window_decides_what_is_black_and_white(tmp_path):
    """A table of 3000 HU beside soft tissue leaves that no contrast."""
    image, labels = np.zeros((12, 12, 12), np.float32), np.zeros((12, 12, 12), np.uint8)
    image[2:10, 2:10, 2:10], image[:, :, 0], image[0] = 40, 3000, -1000
    grey = []
    for window in (None, (0.0, 100.0)):
        plot_preview(image, labels, np.eye(4), np.eye(4), ["background", "a"], tmp_path / "p.png", window)
        grey.append((np.abs(imread(tmp_path / "p.png")[..., 0] - 0.4) < 0.02).mean())
    assert grey[0] < 0.05 < 0.2 < grey[1]


def test_a_legend_of_many_classes_stays_in_the_picture(tmp_path):
    image, labels = np.zeros((8, 8, 8), np.float32), np.ones((8, 8, 8), np.uint8)
    names = [f"structure number {i}" for i in range(21)]
    plot_preview(image, labels, np.eye(4), np.eye(4), names, tmp_path / "preview.png")
    pixels = imread(tmp_path / "preview.png")[..., :3]
    assert (pixels[:, :5] == 1).all()
    assert (pixels[:, -5:] == 1).all()
