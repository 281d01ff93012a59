"""Random damage to the files of a case: each must be listed as a problem, or change nothing that is read.

With ``-s`` it prints the tables of docs/reliability.md.
"""

import bz2
import gzip
import lzma
import multiprocessing
import os
import resource
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rare_lightning.data.integrity import inspect_case
from rare_lightning.data.preprocessing import Preprocessing, median_spacing
from rare_lightning.data.task import read_task
from rare_lightning.evaluation.tables import markdown_table

SECONDS = 60
"""After which a check counts as hanging, or as killed."""

HEADER = nib.Nifti1Header.template_dtype


def rewrite(path, change):
    """Change the bytes under the compression."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(bytes(change(content) or content), 1, mtime=0))


def set_field(path, name, value, index=None):
    def change(content):
        header = np.frombuffer(content, HEADER, 1).copy()
        if index is None:
            header[name] = value
        else:
            header[name][0, index] = value
        content[: HEADER.itemsize] = header.tobytes()

    rewrite(path, change)


def resave(path, change):
    """Change the array and affine, by a library that writes all of the header to fit."""
    image = nib.load(path)
    array, affine = change(np.asanyarray(image.dataobj), image.affine.copy())
    nib.Nifti1Image(array, affine, dtype=array.dtype).to_filename(path)


def flip_byte(content, rng, low=0, high=None):
    content[rng.integers(low, high or len(content))] ^= int(rng.integers(1, 256))
    return content


def byte_of_file(path, rng, _):
    """one byte anywhere changed"""
    path.write_bytes(flip_byte(bytearray(path.read_bytes()), rng))


def byte_of_header(path, rng, _):
    """one of its 348 bytes changed, compressed again"""
    rewrite(path, lambda content: flip_byte(content, rng, 0, HEADER.itemsize))


def bytes_appended(path, rng, _):
    """1 to 63 random bytes after the compressed stream"""
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 64))))


def truncated(path, rng, _):
    """after any byte"""
    os.truncate(path, int(rng.integers(0, path.stat().st_size)))


def missing_block(path, rng, _):
    """as a bad sector does"""
    content = bytearray(path.read_bytes())
    start = int(rng.integers(0, len(content)))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


def bytes_lost(path, rng, _):
    """1 to 63 bytes taken out"""
    content = bytearray(path.read_bytes())
    start = int(rng.integers(0, len(content) - 1))
    del content[start : start + int(rng.integers(1, 64))]
    path.write_bytes(content)


def zipped(path, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("scan.nii", content)


def other_compression(path, rng, _):
    """none, bzip2, xz, zip, or gzip twice, under the same name"""
    content = gzip.decompress(path.read_bytes())
    ways = [bytes, bz2.compress, lzma.compress, lambda c: gzip.compress(gzip.compress(c))]
    way = int(rng.integers(0, len(ways) + 1))
    zipped(path, content) if way == len(ways) else path.write_bytes(ways[way](content))


def no_scan(path, rng, _):
    """no bytes, a web page, gzip of nothing or of zeros, two bytes"""
    path.write_bytes([b"", b"<html>", gzip.compress(b""), gzip.compress(bytes(352)), b"\x1f\x8b"][rng.integers(0, 5)])


def no_file(path, rng, _):
    """removed, or something else in its place"""
    path.unlink()
    [lambda: None, path.mkdir, lambda: path.symlink_to(path)][rng.integers(0, 3)]()


def data_type(path, rng, _):
    """any code of NIfTI or none, with its bits per voxel or without"""
    code = int(rng.choice([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 9999]))
    set_field(path, "datatype", code)
    if rng.integers(0, 2) and code in nib.nifti1.data_type_codes.code:
        set_field(path, "bitpix", nib.nifti1.data_type_codes.dtype[code].itemsize * 8)


def shape(path, rng, _):
    """one of the eight numbers changed, by one to sign and double"""
    axis = int(rng.integers(0, 8))
    old = int(nib.load(path).header["dim"][axis])
    set_field(path, "dim", int(rng.choice([old - 1, old + 1, 0, -1, -old, 1, 7, 2 * old])), axis)


def huge(path, rng, _):
    """32767 voxels along each axis, or four dimensions of 100 GB"""
    for axis, size in enumerate([3, 32767, 32767, 32767] if rng.integers(0, 2) else [4, 3000, 3000, 3000, 2]):
        set_field(path, "dim", size, axis)


def spoiled(rng):
    return float(rng.choice([np.nan, np.inf, -np.inf, 0, -1, 1.5, 1e30, -1e-30]))


def scaling(path, rng, _):
    """slope or intercept NaN, infinite, 0, negative, huge or tiny"""
    set_field(path, rng.choice(["scl_slope", "scl_inter"]), spoiled(rng))


def offset(path, rng, _):
    """inside the header, beyond the end, NaN, off by a byte"""
    set_field(path, "vox_offset", float(rng.choice([0, 1, 348, 351, 353, 368, 1e6, 1e12, -352, np.nan, np.inf])))


def spacing(path, rng, _):
    """one of pixdim NaN, infinite, 0, negative, huge or tiny"""
    set_field(path, "pixdim", spoiled(rng), int(rng.integers(0, 5)))


def world(path, rng, _):
    """one number of either NaN, infinite, 0, negative, huge or tiny"""
    field = str(rng.choice(["srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x"]))
    set_field(path, field, spoiled(rng), int(rng.integers(0, 4)) if field.startswith("srow") else None)


def codes(path, rng, _):
    """known and unknown values"""
    set_field(path, rng.choice(["sform_code", "qform_code"]), int(rng.choice([0, 1, 2, 4, 5, -1, 999])))
    if rng.integers(0, 2):
        set_field(path, "sform_code", 0)


def identity(path, rng, _):
    """any of them, and the intent code"""
    for name in ("magic", "sizeof_hdr", "xyzt_units", "intent_code"):
        if rng.integers(0, 2):
            set_field(
                path, name, b"ni1" if name == "magic" else int(rng.integers(-(2**31) if "size" in name else 0, 200))
            )


def other_byte_order(path, rng, _):
    """the voxels kept as they are"""
    rewrite(path, lambda c: np.frombuffer(c, HEADER, 1).byteswap().tobytes() + bytes(c[HEADER.itemsize :]))


def voxels_lost(path, rng, _):
    """cut before it is compressed"""
    rewrite(path, lambda c: c[: int(rng.integers(HEADER.itemsize, len(c)))])


def voxels_left_over(path, rng, _):
    """zeros appended before it is compressed"""
    rewrite(path, lambda c: c + bytes(int(rng.integers(1, 5000))))


def not_finite(path, rng, _):
    """up to three voxels"""

    def change(array, affine):
        array = array.astype(np.float32)
        array.flat[rng.integers(0, array.size, 3)] = rng.choice([np.nan, np.inf, -np.inf])
        return array, affine

    resave(path, change)


def other_type(path, rng, _):
    """integers of 8 to 64 bits, floats, complex"""
    kind = rng.choice(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "c8"])
    resave(path, lambda array, affine: (array.astype(kind), affine))


def moved(path, rng, _):
    """saved with another affine"""

    def change(array, affine):
        way = rng.integers(0, 5)
        if way == 0:
            affine[int(rng.integers(0, 3)), 3] += 0.5
        elif way == 1:
            affine[:, 0] *= 1.01
        elif way == 2:
            affine[:3, 0] *= -1
        elif way == 3:
            affine = affine[:, [1, 0, 2, 3]]
        else:
            affine[0, 1] += 0.3
        return array, affine

    resave(path, change)


def cut(path, rng, _):
    """slices taken away, axes added or taken away, channels doubled"""

    def change(array, affine):
        ways = [array[1:], array[..., :-1], array[:, ::2], array[..., :1], array[:0], array[..., None, None], array[0]]
        return [*ways, np.stack([array] * 2, -1)][rng.integers(0, len(ways) + 1)], affine

    resave(path, change)


def label_values(path, rng, _):
    """two voxels of no class, fractional, NaN or infinite"""

    def change(array, affine):
        array = array.astype(np.float64)
        array.flat[rng.integers(0, array.size, 2)] = rng.choice([3, 7, 255, -1, 0.5, 1.0001, np.nan, np.inf, 1e300])
        return array, affine

    resave(path, change)


def other_case(path, rng, others):
    """a whole and healthy file in its place"""
    shutil.copy(others[rng.integers(0, len(others))], path)


FAULTS = {
    "a byte of the compressed file": byte_of_file,
    "a byte of the header": byte_of_header,
    "a block of 512 bytes zeroed": missing_block,
    "some bytes lost": bytes_lost,
    "bytes appended": bytes_appended,
    "file truncated": truncated,
    "other or no compression": other_compression,
    "empty, or no scan": no_scan,
    "missing, a folder, a link to itself": no_file,
    "data type": data_type,
    "shape in the header": shape,
    "huge shape in the header": huge,
    "scaling": scaling,
    "offset of the voxels": offset,
    "spacing": spacing,
    "sform, qform": world,
    "sform and qform codes": codes,
    "magic, header size, units": identity,
    "header in the other byte order": other_byte_order,
    "voxels lost": voxels_lost,
    "bytes after the voxels": voxels_left_over,
    "NaN or infinity": not_finite,
    "saved as another type": other_type,
    "moved, scaled, flipped, sheared": moved,
    "cut, or dimensions added": cut,
    "label values": label_values,
    "file of another case, image for label": other_case,
}
ONLY_LABELS = ("label values",)
OTHER_SCANS = (
    "scaling",
    "a byte of the header",
    "data type",
    "saved as another type",
    "header in the other byte order",
)
"""Faults that can make another scan that nothing tells from a good one: it must be read as its header says."""
OUTCOMES = ("found", "nothing changed", "read as the header says")


def read(case, spacing):
    """What training reads, before it normalises intensities."""
    subject = Preprocessing(spacing).on_base_grid(case)
    return [(image.numpy(), image.affine) for image in (subject.image, subject.label)]


def outcome(root, index, fault, seed, scratch):
    """Damage a file of a copied case -> one of OUTCOMES, or what went wrong."""
    task = read_task(root)
    case = task.cases[index]
    rng = np.random.default_rng([index, list(FAULTS).index(fault), seed])
    spacing = median_spacing([case])
    before = read(case, spacing)
    copy = type(case)(case.case_id, (scratch / "image.nii.gz",), scratch / "label.nii.gz")
    shutil.copy(case.images[0], copy.images[0])
    shutil.copy(case.label, copy.label)
    damaged = copy.label if fault in ONLY_LABELS or rng.integers(0, 2) else copy.images[0]
    strangers = [c for c in task.cases if nib.load(c.images[0]).shape != nib.load(case.images[0]).shape]
    others = [c.label if damaged == copy.label else c.images[0] for c in strangers]
    others.append(case.images[0] if damaged == copy.label else case.label)
    FAULTS[fault](damaged, rng, others)
    problems = inspect_case(copy, task).problems
    if problems:
        good = all("\n" not in p for p in problems) and any(damaged.name in p or "differ" in p for p in problems)
        return OUTCOMES[0] if good else f"not one line with the file's name: {problems}"
    for (array, affine), (old, old_affine), path in zip(
        read(copy, spacing), before, (copy.images[0], copy.label), strict=True
    ):
        if not np.allclose(affine, old_affine, atol=1e-2):  # a hundredth of a voxel of 1 mm, as the check has it
            return f"missed: affine {affine.tolist()} of {path.name} was {old_affine.tolist()}"
        if not np.array_equal(array, old):
            told = nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32)[None]
            if fault not in OTHER_SCANS or path != copy.images[0] or not np.allclose(array, told, rtol=1e-5):
                return f"missed: voxels of {path.name} changed"
            return OUTCOMES[2]
    return OUTCOMES[1]


def attempt(*arguments):
    try:
        return outcome(*arguments)
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))


def damage(root, indices, seeds, scratch):
    """Outcomes of every fault, ``{fault: Counter}``, printed as a table; what went wrong."""
    outcomes, wrong = {fault: Counter() for fault in FAULTS}, []
    pool = None
    for number, (fault, index, seed) in enumerate((f, i, s) for f in FAULTS for i in indices for s in range(seeds)):
        # A process of its own: a reader that hangs or crashes would take the tests with it.
        pool = pool or multiprocessing.get_context("spawn").Pool(1, limit_memory)
        folder = scratch / str(number)
        folder.mkdir()
        try:
            result = pool.apply_async(attempt, (root, index, fault, seed, folder)).get(SECONDS)
        except multiprocessing.TimeoutError:
            result = "hangs, or was killed"
            pool.terminate()
            pool = None
        shutil.rmtree(folder)
        outcomes[fault][result.split(":")[0]] += 1
        if result not in OUTCOMES:
            wrong.append(f"{fault}, case {index}, seed {seed}: {result}")
    if pool:
        pool.terminate()
        pool.join()
    table = {**outcomes, "all": sum(outcomes.values(), Counter())}
    how = {"all": "", **{fault: inject.__doc__ for fault, inject in FAULTS.items()}}
    named = [
        {"fault": fault, "how": how[fault], "times": str(n.total()), **{name: str(n[name]) for name in OUTCOMES}}
        for fault, n in table.items()
    ]
    print("", markdown_table(named), *wrong, sep="\n")
    return wrong


@pytest.mark.slow
def test_damage_is_found_or_harmless(phantom, tmp_path):
    assert damage(phantom, [0, 1], 8, tmp_path) == []


@pytest.mark.real_data
@pytest.mark.skipif("RARE_DATA" not in os.environ, reason="RARE_DATA names no folder")
def test_damage_to_real_scans_is_found_or_harmless(tmp_path):
    root = Path(os.environ["RARE_DATA"], "Task04_Hippocampus")
    assert damage(root, range(0, len(read_task(root).cases), 20), 1, tmp_path) == []
