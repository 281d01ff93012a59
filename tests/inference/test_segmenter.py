from itertools import permutations, product
from math import prod

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio

import rare_lightning
from rare_lightning import RAREUNet
from rare_lightning.data import DecathlonDataModule
from rare_lightning.data.cache import write_cached
from rare_lightning.data.dataset import NormalizedCases, WholeVolumes
from rare_lightning.data.geometry import Geometry
from rare_lightning.data.pyramid import PyramidCollate, ToLevelGrid
from rare_lightning.data.resampling import resample
from rare_lightning.data.scans import Scan, ScanFiles, read_scan
from rare_lightning.data.task import Case
from rare_lightning.errors import UserError
from rare_lightning.inference.memory import GIB, LIBRARIES, forward_bytes
from rare_lightning.networks import MultiResolutionNetwork, Prediction
from rare_lightning.networks.grids import block_average, interpolate, pad_to_size, round_up


def labels_of(image):
    return sitk.GetArrayFromImage(image)


def same_grid(one, other):
    return all(
        getattr(one, f"Get{what}")() == getattr(other, f"Get{what}")()
        for what in ("Size", "Spacing", "Origin", "Direction")
    )


def as_scan(image):
    return Scan(labels_of(image).transpose(2, 1, 0)[None], Geometry.of(image))


def canonical(scan):
    """Give a scan the directions that networks see, so that no axis is flipped."""
    scan.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return scan


def test_a_scan_of_a_level_gets_what_the_network_says(segmenter, scan):
    array = torch.as_tensor(labels_of(canonical(scan)).transpose(2, 1, 0).copy())[None]
    for level in range(3):
        stride = (2**level,) * 3
        low = block_average(array[None], stride)[0]
        made = sitk.GetImageFromArray(low[0].numpy().transpose(2, 1, 0))
        made.SetDirection(scan.GetDirection())
        made.SetSpacing([float(s) for s in stride])
        logits = segmenter.networks[0]({level: segmenter.preprocessing.normalized(low)[None]}).logits[level]
        expected = block_average(logits.softmax(1), stride).argmax(1)[0]
        answer = segmenter(made)
        assert same_grid(answer, made)
        assert answer.GetPixelID() == sitk.sitkUInt8
        assert np.array_equal(labels_of(answer).transpose(2, 1, 0), expected.numpy())
        assert 0 < expected.float().mean() < 2


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_a_scan_stored_in_another_order_gets_the_same_answer(segmenter, scan, order, flips):
    scan.SetSpacing((1.0, 1.3, 2.1))
    scan.SetDirection(tio.ScalarImage(tensor=torch.zeros(1, 2, 2, 2)).direction)
    stored = sitk.Flip(sitk.PermuteAxes(scan, order), flips, False)
    expected = sitk.Flip(sitk.PermuteAxes(segmenter(scan), order), flips, False)
    answer = segmenter(stored)
    assert same_grid(answer, stored)
    assert np.array_equal(labels_of(answer), labels_of(expected))


def test_paths_and_images_of_both_libraries_agree(segmenter, scan, tmp_path):
    sitk.WriteImage(scan, str(tmp_path / "scan.nii.gz"))
    by_path = segmenter(tmp_path / "scan.nii.gz")
    assert np.array_equal(labels_of(by_path), labels_of(segmenter(str(tmp_path / "scan.nii.gz"))))
    assert np.array_equal(labels_of(by_path), labels_of(segmenter(scan)))
    image = tio.ScalarImage(tmp_path / "scan.nii.gz")
    answer = segmenter(image)
    assert isinstance(answer, tio.LabelMap)
    assert np.array_equal(answer.affine, image.affine)
    assert np.array_equal(answer.numpy()[0], labels_of(by_path).transpose(2, 1, 0))


class Bright(MultiResolutionNetwork):
    """Calls bright voxels the first class, whatever the level."""

    def __init__(self, answer_grid):
        super().__init__()
        self.levels, self.answer_grid, self.coarsest_stride = (0, 1, 2), answer_grid, (4, 4, 4)
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def level_stride(self, level):
        return (2**level,) * 3

    def forward(self, images):
        ((level, image),) = images.items()
        if self.answer_grid == "base":
            image = interpolate(image, self.level_stride(level))
        return Prediction({level: torch.cat([torch.ones_like(image), image, -image], dim=1)}, {}, {})


@pytest.mark.parametrize("answer_grid", ["base", "level"])
@pytest.mark.parametrize("on_base_grid", [False, True])
@pytest.mark.parametrize("spacing", [(0.6, 0.6, 0.6), (1, 1, 4), (2.2, 2.2, 2.2), (1.3, 2.7, 2), (4, 4, 4), (1, 1, 1)])
@pytest.mark.parametrize("direction", [(-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 0.8, 0.6, 1, 0, 0, 0, -0.6, 0.8)])
def test_what_is_found_lies_where_it_is(segmenter, answer_grid, on_base_grid, spacing, direction):
    segmenter.networks = [Bright(answer_grid)]
    size = [round(45 / mm) + 1 for mm in spacing]
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing([float(mm) for mm in spacing])
    image.SetDirection(direction)
    image.SetOrigin((13.0, -40.0, 7.5))
    middle = [n * share for n, share in zip(size, (0.4, 0.55, 0.5), strict=True)]
    place = np.array(image.TransformContinuousIndexToPhysicalPoint(middle))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), -1)
    world = index * np.array(spacing) @ np.array(direction).reshape(3, 3).T + image.GetOrigin()
    blob = Geometry.of(image).stamp(np.exp(-((world - place) ** 2).sum(-1) / (2 * 6**2)).astype("f4"))
    answer = segmenter.segment(segmenter.prepare(as_scan(blob), "blob"), on_base_grid)
    found = answer.geometry.stamp(answer.labels)
    if not on_base_grid:
        assert same_grid(found, blob)
    else:
        assert found.GetSpacing() == pytest.approx((1, 1, 1))
    inside = np.argwhere(answer.labels == 1)
    assert len(inside) > 10
    assert not (answer.labels == 2).any()
    centre = found.TransformContinuousIndexToPhysicalPoint(inside.mean(0).tolist())
    assert np.abs(np.array(centre) - place).max() < 0.5
    assert answer.volumes_ml[segmenter.classes[1]] == pytest.approx(len(inside) * np.prod(found.GetSpacing()) / 1000)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_scan_is_prepared_as_it_was_tested(segmenter, phantom, tmp_path, level):
    """rare test brings a scan down by itself; a file of that resolution must look the same to the network."""
    data = DecathlonDataModule(str(phantom), levels=2, depth=3, spacing=[1.0, 1.0, 1.0], num_workers=0)
    data.prepare_data()
    batch = next(iter(data.test_dataloader()))
    [case] = [case for case in data.task.cases if case.case_id == batch["case"][0]]
    subject = data.preprocessing.on_base_grid(case)
    stride = (2**level,) * 3
    padded = pad_to_size(subject.image.data, round_up(subject.spatial_shape, stride))
    low = ToLevelGrid(stride)(tio.Subject(image=tio.ScalarImage(tensor=padded, affine=subject.image.affine)))
    low.image.save(tmp_path / "low.nii.gz")
    prepared = segmenter.prepare(read_scan(ScanFiles("low", (tmp_path / "low.nii.gz",))), "low")
    assert prepared.route.level == level
    d, h, w = prepared.size
    torch.testing.assert_close(
        prepared.image[:, :d, :h, :w], batch["image"][level][0, :, :d, :h, :w], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_scan_of_another_spacing_is_prepared_as_it_was_trained(segmenter, scan, tmp_path, level):
    """With the statistics of what it shows, and not of what interpolation draws around a brain."""
    array = labels_of(scan).copy()
    array[:, 6:9] = array[:, :, 4:7] = 0  # within, or it would be cut off
    skull_stripped = sitk.GetImageFromArray(array)
    skull_stripped.SetSpacing((1.4, 0.7, 1.2))
    paths = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    sitk.WriteImage(skull_stripped, paths[0])
    sitk.WriteImage(sitk.Cast(skull_stripped > 2, sitk.sitkUInt8), paths[1])
    settings, strides = segmenter.preprocessing, [segmenter.level_strides[level] for level in range(3)]
    cases = NormalizedCases([write_cached(Case("scan", paths[:1], paths[1]), settings, strides, tmp_path)], settings)
    batch = PyramidCollate(strides, preprocessing=settings)([WholeVolumes(cases)[0]])
    prepared = segmenter.prepare(read_scan(ScanFiles("scan", paths[:1])), "scan", level=level)
    d, h, w = prepared.size
    trained_on, predicted_on = batch["image"][level][0, :, :d, :h, :w], prepared.image[:, :d, :h, :w]
    if level == 0:
        torch.testing.assert_close(predicted_on, trained_on, rtol=1e-4, atol=1e-4)
    else:  # brought there in one step, and not by way of the base grid
        slope, shift = np.polyfit(trained_on.flatten(), predicted_on.flatten(), 1)
        assert abs(slope - 1) < 0.1
        assert abs(shift) < 0.1


def test_interpolation_around_a_brain_does_not_change_its_intensities(segmenter, scan):
    """A voxel between the brain and the empty space around it is no voxel of the brain."""
    array = labels_of(scan).transpose(2, 1, 0).copy()
    array[:, :, :6] = array[:6] = 0
    assert segmenter.preprocessing.foreground == "nonzero"
    geometry = Geometry((16, 20, 24), (1.4, 1.4, 1.4), (0.0, 0.0, 0.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    array[:, 6] = array[:, 7] = array[:, 12] = 0  # within the brain, or it would be cut off
    prepared = segmenter.prepare(Scan(array[None], geometry), "scan", level=0)
    d, h, w = prepared.size
    own = segmenter.preprocessing.normalized(torch.from_numpy(array[None]))[:, 6:, :, 6:]
    expected = resample(own, geometry.spacing, (1, 1, 1), prepared.size)
    torch.testing.assert_close(prepared.image[:, :d, :h, :w], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("on_base_grid", [False, True])
@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (0, 0, 1.0, -0.96, 0.28, 0, 0.28, 0.96, 0)])
@pytest.mark.parametrize("mm", [1.0, 1.3, 2.0, 3.0])
def test_empty_space_around_a_scan_changes_nothing(segmenter, scan, direction, mm, on_base_grid):
    voxels = labels_of(scan).transpose(2, 1, 0)[:16, :17, :18] + 5.0

    def answer(array):
        x, y, z = array.shape
        geometry = Geometry((x, y, z), (mm, mm, mm), (10.0, 20.0, 30.0), direction)
        prepared = segmenter.prepare(Scan(array[None], geometry), "scan")
        return prepared, segmenter.segment(prepared, on_base_grid, keep_probabilities=True)

    tight, alone = answer(voxels)
    loose, padded = answer(np.pad(voxels, [(3, 8), (11, 0), (0, 5)]))
    assert torch.equal(loose.image, tight.image)
    assert padded.geometry.size == tuple(padded.labels.shape)
    assert padded.volumes_ml == alone.volumes_ml
    first, moved = (np.argwhere(answer.labels > 0) for answer in (alone, padded))
    assert len(first) > 30
    shift = moved.min(axis=0) - first.min(axis=0)
    inside = tuple(slice(begin, begin + n) for begin, n in zip(shift, alone.labels.shape, strict=True))
    assert np.array_equal(padded.labels[inside], alone.labels)
    assert np.array_equal(padded.probabilities[:, *inside], alone.probabilities)
    padded.probabilities[:, *inside] = 0
    padded.probabilities[0, *inside] = 1
    assert (padded.probabilities[0] == 1).all()
    # In space, it is where padding put the scan's first corner.
    corners = [one.geometry.affine @ [*begin, 1] for one, begin in ((alone, (0, 0, 0)), (padded, shift))]
    by_padding = Geometry((1, 1, 1), (mm, mm, mm), (0.0, 0.0, 0.0), direction).affine @ [3, 11, 0, 1]
    np.testing.assert_allclose(corners[1] - corners[0], [*by_padding[:3], 0], atol=1e-9)


def test_what_is_too_small_for_the_network_is_seen_with_its_surroundings(segmenter, scan):
    array = np.zeros((24, 24, 24), np.float32)
    array[10:14, 10:14, 10:14] = labels_of(scan)[:4, :4, :4] + 5
    geometry = Geometry((24, 24, 24), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    prepared = segmenter.prepare(Scan(array[None], geometry), "scan")
    assert segmenter.segment(prepared).labels.shape == prepared.size == (24, 24, 24)


def test_spacings_that_headers_round_are_not_resampled(segmenter, scan):
    plain = segmenter(scan)
    scan.SetSpacing((1.0004, 0.9996, 1.0))
    prepared = segmenter.prepare(as_scan(scan), "scan")
    assert prepared.route.note.endswith("no resampling")
    assert prepared.size == scan.GetSize()
    assert np.array_equal(labels_of(segmenter(scan)), labels_of(plain))


def test_an_ensemble_is_the_mean_of_its_members(checkpoint, segmenter, scan, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(1)
    for weights in content["state_dict"].values():
        if weights.is_floating_point():
            weights += 0.3 * torch.randn(weights.shape, generator=generator)
    torch.save(content, tmp_path / "other.ckpt")
    other = rare_lightning.load(tmp_path / "other.ckpt")
    both = rare_lightning.load([checkpoint, tmp_path / "other.ckpt"])
    maps = [model.probabilities(model.prepare(as_scan(scan), "scan")) for model in (segmenter, other, both)]
    assert not torch.allclose(maps[0], maps[1], atol=0.01)
    torch.testing.assert_close(maps[2], (maps[0] + maps[1]) / 2)


def trained_with_flips(checkpoint, path, *axes):
    content = torch.load(checkpoint, weights_only=True)
    flips = [{"class_path": "torchio.RandomFlip", "init_args": {"axes": list(axes)}}]
    content["datamodule_hyper_parameters"]["augmentation"] = flips if axes else None
    torch.save(content, path)
    return path


def test_mixed_precision_rounds_but_little(checkpoint, scan):
    plain, mixed = (rare_lightning.load(checkpoint, precision=precision) for precision in ("32-true", "bf16-mixed"))
    whole = Scan(sitk.GetArrayFromImage(scan).T[None], Geometry.of(scan))
    for level in plain.level_strides:
        exact, rounded = (model.probabilities(model.prepare(whole, "scan", level)) for model in (plain, mixed))
        assert rounded.dtype == torch.float32
        assert not torch.equal(exact, rounded)
        torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05)
        torch.testing.assert_close(rounded.sum(0), torch.ones_like(rounded[0]))


def test_mirrors_of_mirrors(checkpoint, scan, tmp_path):
    mirrored = rare_lightning.load(trained_with_flips(checkpoint, tmp_path / "flips.ckpt", 0), mirror=True)
    flipped = sitk.GetImageFromArray(np.ascontiguousarray(labels_of(scan)[:, :, ::-1]))
    plain = sitk.GetImageFromArray(labels_of(scan))
    assert np.array_equal(labels_of(mirrored(flipped))[:, :, ::-1], labels_of(mirrored(plain)))


class FrontAndBack(Bright):
    """Tells two classes apart by their place along axis 1, as a network does that was never flipped along it."""

    def forward(self, images):
        ((level, image),) = images.items()
        place = torch.linspace(-9, 9, image.shape[3], device=image.device)[:, None].expand_as(image)
        return Prediction({level: torch.cat([-image, place, -place], dim=1)}, {}, {})


@pytest.mark.parametrize(("axes", "alike"), [([0], True), ([0, 2], True), ([1], False), ([0, 1, 2], False)])
def test_only_axes_that_training_flipped_are_mirrored(checkpoint, scan, tmp_path, axes, alike):
    path = trained_with_flips(checkpoint, tmp_path / "flips.ckpt", *axes)
    answers = []
    for mirror in (False, True):
        model = rare_lightning.load(path, mirror=mirror).run_by(FrontAndBack("level"))
        answers.append(model.probabilities(model.prepare(as_scan(scan), "scan")))
    assert torch.allclose(*answers, atol=1e-5) == alike


def test_probabilities_come_in_the_kind_of_the_scan(segmenter, scan, tmp_path):
    labels, softmax = labels_of(segmenter(scan)), segmenter(scan, probabilities=True)
    assert softmax.GetSize() == scan.GetSize()
    assert softmax.GetOrigin() == scan.GetOrigin()
    by_voxel = sitk.GetArrayFromImage(softmax)
    assert by_voxel.shape[-1] == 3
    np.testing.assert_allclose(by_voxel.sum(-1), 1, atol=1e-5)
    assert np.array_equal(by_voxel.argmax(-1).astype(np.uint8), labels)
    sitk.WriteImage(scan, tmp_path / "scan.nii.gz")
    answer = segmenter(tio.ScalarImage(tmp_path / "scan.nii.gz"), probabilities=True)
    assert isinstance(answer, tio.ScalarImage)
    np.testing.assert_allclose(answer.numpy().transpose(3, 2, 1, 0), by_voxel, atol=1e-6)


def test_channels_are_a_list_of_files(segmenter, scan, tmp_path):
    sitk.WriteImage(scan, tmp_path / "a.nii.gz")
    assert np.array_equal(labels_of(segmenter([tmp_path / "a.nii.gz"])), labels_of(segmenter(scan)))
    with pytest.raises(UserError, match=r"a.nii.gz: has 2 channel\(s\), the model needs 1"):
        segmenter([str(tmp_path / "a.nii.gz")] * 2)
    with pytest.raises(TypeError, match="list is no scan with a spacing: give a path"):
        segmenter([])


def test_a_device_that_is_not_there_gets_one_line(checkpoint):
    with pytest.raises(UserError, match="device nowhere: "):
        rare_lightning.load(checkpoint, device="nowhere")


def test_models_that_were_trained_without_flips_are_not_mirrored(checkpoint, tmp_path):
    plain = trained_with_flips(checkpoint, tmp_path / "plain.ckpt")
    flips = [trained_with_flips(checkpoint, tmp_path / f"{axis}.ckpt", axis) for axis in (0, 1)]
    with pytest.raises(UserError, match=r"plain\.ckpt: tells of no axis that its training flipped .*leave out mirror"):
        rare_lightning.load([flips[0], plain], mirror=True)
    with pytest.raises(UserError, match=r"1\.ckpt: cannot be averaged with .*0\.ckpt, they differ in mirror_axes"):
        rare_lightning.load(flips, mirror=True)
    assert len(rare_lightning.load([*flips, plain]).networks) == 3


def test_members_that_answer_on_other_grids_are_refused(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["window_size"] = [16, 16, 16]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="differ in window_size"):
        rare_lightning.load([checkpoint, tmp_path / "other.ckpt"])


@pytest.mark.parametrize("path", ["os.getcwd", "torch.nn.Linear", "nowhere.Network"])
def test_a_checkpoint_cannot_name_any_function(checkpoint, tmp_path, path):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["network"] = {"class_path": path, "init_args": {}}
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="its network cannot be built"):
        rare_lightning.load(tmp_path / "other.ckpt")


def test_wrong_scans_and_checkpoints_are_refused(segmenter, scan, tmp_path):
    with pytest.raises(UserError, match=r"image: has 2 channel\(s\), the model needs 1"):
        segmenter(sitk.Compose([scan, scan]))
    with pytest.raises(UserError, match=r"^image: level \(3\) must be one of \[0, 1, 2\]"):
        segmenter(scan, level=3)
    broken = sitk.Image(scan)
    broken[3, 3, 3] = float("nan")
    with pytest.raises(UserError, match="image: holds NaN"):
        segmenter(broken)
    with pytest.raises(UserError, match="too small"):
        segmenter(scan[:2, :1, :1])
    micrometres = sitk.Image(scan)
    micrometres.SetSpacing([5000.0] * 3)
    with pytest.raises(
        UserError, match=r"image: at level 2 it would have .* more than fit into the memory\. By its spacing"
    ):
        segmenter(micrometres)
    (tmp_path / "a.ckpt").write_bytes(b"other")
    for path, message in ((tmp_path / "a.ckpt", "not a checkpoint"), (tmp_path / "b.ckpt", "no such checkpoint")):
        with pytest.raises(UserError, match=message):
            rare_lightning.load(path)


def test_too_little_memory_makes_windows_and_far_too_little_is_refused(checkpoint, segmenter, phantom):
    path = phantom / "imagesTr" / "hippocampus_002.nii.gz"
    whole = segmenter.prepare(read_scan(ScanFiles("scan", (path,))), "scan")
    assert segmenter.window(whole) is None
    size = whole.image.shape[1:]
    per_voxel = forward_bytes(segmenter.networks[0], whole.route.level, 1)
    little = rare_lightning.load(checkpoint, memory=(LIBRARIES + 0.7 * per_voxel * prod(size)) / GIB)
    window = little.window(whole)
    assert prod(window) <= 0.7 * prod(size)
    assert all(n % 8 == 0 for n in window)
    answer = little.segment(whole)
    assert answer.window == window
    shared = rare_lightning.load(checkpoint)
    shared.processes = 10**6
    with pytest.raises(UserError, match=r"may use 0\.0"):  # what processes on one machine share
        shared.window(whole)
    assert answer.labels.shape == segmenter.segment(whole).labels.shape
    # The scan and its copy, and four maps, take 24 bytes a voxel; kept probabilities of three classes as many again.
    enough = rare_lightning.load(checkpoint, memory=(LIBRARIES + (per_voxel + 40) * prod(size)) / GIB)
    assert enough.window(whole) is None
    assert enough.window(whole, keep_probabilities=True) is not None


def test_the_largest_network_of_an_ensemble_sets_the_memory(checkpoint):
    pair = rare_lightning.load([checkpoint, checkpoint])
    alone = pair.forward_bytes(0)
    for place in (0, 1):
        larger = rare_lightning.load([checkpoint, checkpoint])
        larger.networks[place] = RAREUNet(1, 3, features=16, depth=4, levels=2)
        assert larger.forward_bytes(0) > 2 * alone


def test_networks_trained_on_patches_segment_in_windows_of_their_size(checkpoint, scan, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["window_size"] = [16, 16, 16]
    torch.save(content, tmp_path / "patches.ckpt")
    segmenter = rare_lightning.load(tmp_path / "patches.ckpt")
    prepared = segmenter.prepare(as_scan(scan), "scan")
    assert segmenter.window(prepared) == [16, 16, 16]
    assert segmenter.segment(prepared).window == [16, 16, 16]


def test_what_tells_no_spacing_is_refused(checkpoint):
    with pytest.raises(TypeError, match=r"ndarray is no scan with a spacing: give a path, a list"):
        rare_lightning.load(checkpoint)(np.zeros((8, 8, 8)))
