"""Every format, type and header is read as one kind of volume, or refused with its path and reason."""

import gzip
import logging
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from digar.volumes.dicom import is_dicom
from digar.volumes.reading import VolumeError, read_header, read_volume, volume_suffix

AFFINE = np.array([[0.0, -1.5, 0, 10], [2.0, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).integers(0, 100, (6, 5, 4))
TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def write_nifti(path: Path, values: np.ndarray = VALUES, affine: np.ndarray = AFFINE, **header: object) -> Path:
    image = nib.Nifti1Image(values, affine, dtype=values.dtype)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patch_header(path: Path, **fields: object) -> None:
    """Change fields of an uncompressed NIfTI file that nibabel would not write so."""
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]))
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)


def write_itk(path: Path, values: np.ndarray = VALUES) -> Path:
    """The same volume by ITK, whose coordinates are LPS and whose arrays run z, y, x."""
    image = itk.image_from_array(np.ascontiguousarray(values.T))
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    itk.imwrite(image, str(path))
    return path


def write_series(folder: Path, values: np.ndarray = VALUES, series: str = "1.2.3") -> Path:
    """The same volume as a DICOM series, one file per slice along the last axis."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    for k in range(values.shape[2]):
        image = itk.image_from_array(np.ascontiguousarray(values[:, :, k : k + 1].T.astype(np.int16)))
        image.SetSpacing(spacing.tolist())
        tags = image.GetMetaDataDictionary()
        tags["0008|0060"], tags["0020|000e"], tags["0020|000d"] = "MR", series, "1.2"
        tags["0020|0032"] = "\\".join(f"{v:.6f}" for v in (lps @ [0, 0, k, 1])[:3])
        tags["0020|0037"] = "\\".join(f"{v:.6f}" for v in direction[:, :2].T.ravel())
        tags["0020|0013"], tags["0018|0050"], tags["0018|0088"] = str(k), str(spacing[2]), str(spacing[2])
        dicom_io = itk.GDCMImageIO.New(KeepOriginalUID=True)
        itk.imwrite(image, str(folder / f"{series}-{9 - k}"), imageio=dicom_io)  # names say nothing of the order
    return folder


# Formats


def test_a_nifti_volume_comes_with_one_channel_its_affine_and_its_path(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", VALUES.astype(np.int16))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.numpy(), VALUES[None])
    np.testing.assert_allclose(volume.affine, AFFINE)
    np.testing.assert_allclose(volume.meta["original_affine"], AFFINE)
    assert volume.dtype.is_floating_point
    assert volume.meta["filename_or_obj"] == str(path)
    assert tuple(volume.meta["spatial_shape"]) == VALUES.shape


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", "<>")
def test_every_type_in_both_byte_orders_is_read(dtype, order, tmp_path):
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    nib.save(nib.Nifti1Image(VALUES.astype(dtype), AFFINE, header), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii")[0].numpy(), VALUES)


def test_scaled_integers_are_read_as_the_header_means_them(tmp_path):
    path = write_nifti(tmp_path / "a.nii", VALUES.astype(np.int16))
    patch_header(path, scl_slope=0.5, scl_inter=-1024)
    np.testing.assert_array_equal(read_volume(path)[0].numpy(), VALUES * 0.5 - 1024)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "float32", "float64"])
def test_metaimage_and_nrrd_equal_nifti(suffix, dtype, tmp_path):
    path = tmp_path / f"a{suffix}"
    if dtype == "int8":  # ITK's Python writes none
        write_itk(path, VALUES.astype("uint8"))
        header = path.read_bytes().replace(b"MET_UCHAR", b"MET_CHAR").replace(b"unsigned char", b"int8")
        path.write_bytes(header)
    else:
        write_itk(path, VALUES.astype(dtype))
    header, volume = read_header(path), read_volume(path)
    assert header.dtype == np.dtype(dtype)
    assert header.shape == VALUES.shape
    np.testing.assert_array_equal(volume[0].numpy(), VALUES)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


def test_a_dicom_series_equals_nifti_whatever_its_files_are_called(tmp_path):
    folder = write_series(tmp_path / "series")
    assert all(is_dicom(file) for file in folder.iterdir())
    volume = read_volume(folder)
    np.testing.assert_allclose(np.abs(volume.affine[:3, :3]), np.abs(AFFINE[:3, :3]), atol=1e-5)
    canonical = [nib.as_closest_canonical(nib.Nifti1Image(v, a)) for v, a in
                 ((VALUES.astype(np.float32), AFFINE), (volume[0].numpy(), volume.affine.numpy()))]  # fmt: skip
    np.testing.assert_array_equal(canonical[0].get_fdata(), canonical[1].get_fdata())
    np.testing.assert_allclose(canonical[0].affine, canonical[1].affine, atol=1e-4)


# Axes


@pytest.mark.parametrize("shape", [(6, 5, 4, 1), (6, 5, 4, 1, 1)])
def test_trailing_axes_of_one_are_dropped(shape, tmp_path):
    volume = read_volume(write_nifti(tmp_path / "a.nii", VALUES.astype(np.int16).reshape(shape)))
    np.testing.assert_array_equal(volume.numpy(), VALUES[None])


@pytest.mark.parametrize("middle", [(), (1,)])
def test_a_further_axis_becomes_channels(middle, tmp_path):
    values = np.stack([VALUES, 2 * VALUES, 3 * VALUES], axis=-1).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii", values.reshape(6, 5, 4, *middle, 3))
    assert read_header(path).channels == 3
    np.testing.assert_array_equal(read_volume(path).numpy(), np.moveaxis(values, -1, 0))


def test_components_of_a_metaimage_become_channels(tmp_path):
    values = np.stack([VALUES, 2 * VALUES], axis=-1).astype(np.float32)
    image = itk.image_from_array(np.ascontiguousarray(values.transpose(2, 1, 0, 3)), is_vector=True)
    itk.imwrite(image, str(tmp_path / "a.mha"))
    assert read_header(tmp_path / "a.mha").channels == 2
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mha").numpy(), np.moveaxis(values, -1, 0))


# Placement


def forms(path: Path, sform_code: int, qform_code: int, shift: float) -> Path:
    """A volume whose qform is its sform moved along x by ``shift`` mm."""
    image = nib.Nifti1Image(VALUES.astype(np.int16), AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += shift
    image.set_sform(AFFINE, sform_code)
    image.set_qform(moved, qform_code)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("sform", "qform", "shift"), [(1, 1, 0), (2, 1, 0), (4, 0, 0), (0, 1, 7), (0, 3, 7)])
def test_the_sform_places_a_volume_if_its_code_is_positive_else_the_qform(sform, qform, shift, tmp_path):
    volume = read_volume(forms(tmp_path / "a.nii", sform, qform, shift))
    np.testing.assert_allclose(volume.affine[0, 3], AFFINE[0, 3] + shift, atol=1e-4)


@pytest.mark.parametrize(("shift", "warned"), [(0.05, False), (0.2, True)])
def test_forms_more_than_a_tenth_of_a_millimetre_apart_are_warned_of(shift, warned, tmp_path, caplog):
    path = forms(tmp_path / "a.nii", 1, 1, shift)
    with caplog.at_level(logging.WARNING):
        read_volume(path)
    assert [f"{path}: sform and qform lie up to 0.2 mm apart; the sform is used" in caplog.text] == [warned]


def test_a_volume_without_orientation_is_read_with_a_warning(tmp_path):
    assert read_header(forms(tmp_path / "a.nii", 0, 0, 0)).warnings == (
        "has neither sform nor qform: its orientation is a guess",
    )


def sheared(cosine: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 2] = 3 * (np.array([0, 0, 1]) * np.sqrt(1 - cosine**2) + np.array([0, 1, 0]) * cosine)
    return affine


@pytest.mark.parametrize("cosine", [0.0, 0.005])
def test_an_affine_sheared_within_the_tolerance_is_read(cosine, tmp_path):
    np.testing.assert_allclose(
        read_volume(write_nifti(tmp_path / "a.nii", affine=sheared(cosine))).affine, sheared(cosine)
    )


def test_sheared_affine_is_refused_with_its_path(tmp_path):
    path = write_nifti(tmp_path / "a.nii", affine=sheared(0.2))
    with pytest.raises(VolumeError, match=r"sheared, two voxel axes meet at 78\.5 degrees: resample it") as caught:
        read_header(path)
    assert caught.value.path == str(path)


def broken_affine(change: str) -> np.ndarray:
    affine = AFFINE.copy()
    if change == "zero":
        affine[:, 1] = 0
    elif change == "nan":
        affine[0, 0] = np.nan
    else:
        affine[:3, 1] = affine[:3, 0]
    return affine


@pytest.mark.parametrize(
    ("change", "reason"), [("zero", "its spacing is 2 x 0 x 3 mm"), ("nan", "not a number"), ("singular", "singular")]
)
def test_an_affine_that_places_nothing_is_refused(change, reason, tmp_path):
    path = write_nifti(tmp_path / "a.nii")
    rows = dict(zip(("srow_x", "srow_y", "srow_z"), broken_affine(change), strict=False))
    patch_header(path, sform_code=1, **rows)
    with pytest.raises(VolumeError, match=reason):
        read_header(path)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 1, np.nan), (-1, 1, 1)])
@pytest.mark.parametrize("code", [0, 1])
def test_a_voxel_size_that_is_none_is_refused_where_it_places_the_volume(sizes, code, tmp_path):
    path = forms(tmp_path / "a.nii", 0, code, 0)
    patch_header(path, pixdim=[1, *sizes, 1, 1, 1, 1])
    with pytest.raises(VolumeError, match=r"a.nii: its spacing is (0|1|-1) x 1 x (1|nan) mm: correct the header"):
        read_header(path)
    path = forms(tmp_path / "a.nii", 2, code, 0)
    patch_header(path, pixdim=[1, *sizes, 1, 1, 1, 1])
    np.testing.assert_allclose(read_header(path).affine, AFFINE)


@pytest.mark.parametrize("factor", [0.001, 20, 100])
def test_a_spacing_that_no_scanner_has_is_refused(factor, tmp_path):
    affine = AFFINE @ np.diag([factor, factor, factor, 1])
    with pytest.raises(VolumeError, match=r"a.nii: its spacing is .* only 0.005 to 15 mm can be right"):
        read_header(write_nifti(tmp_path / "a.nii", affine=affine))


# What is no volume


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (VALUES[:, :, 0].astype(np.int16), "has 2 axes"),
        (VALUES[:, :, :1].astype(np.int16), "is a single slice of 6x5x1 voxels"),
        (VALUES.astype(np.complex64), "holds complex numbers"),
        (np.zeros((6, 5, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "holds colours"),
        (np.zeros((6, 5, 4, 2, 3), np.int16), "has the axes 6x5x4x2x3"),
    ],
)
def test_what_is_no_volume_of_numbers_is_refused(values, reason, tmp_path):
    with pytest.raises(VolumeError, match=reason):
        read_volume(write_nifti(tmp_path / "a.nii.gz", values))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "a.nrrd", "a.mhd"])
@pytest.mark.parametrize("content", [b"", b"These are not voxels.\n" * 50], ids=["empty", "text"])
def test_other_files_under_an_images_name_are_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeError, match=f"{name}: cannot be read"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "a.nrrd"])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_truncated_file_is_refused(name, share, tmp_path):
    values = np.random.default_rng(0).normal(size=(12, 11, 10)).astype(np.float32)
    path = tmp_path / name
    write_nifti(path, values) if "nii" in name else write_itk(path, values)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(VolumeError, match="cannot be read"):
        read_volume(path)


@pytest.mark.parametrize("where", ["voxels", "checksum", "length", "no trailer"])
def test_a_compressed_file_whose_checksum_fails_cannot_be_read(where, tmp_path):
    path = write_nifti(tmp_path / "a.nii", np.random.default_rng(0).integers(0, 99, (9, 8, 40)).astype(np.int16))
    content = bytearray(gzip.compress(path.read_bytes(), 0))  # stored: damage changes voxels and nothing else
    if where == "no trailer":
        del content[-8:]
    else:
        content[{"voxels": 1000, "checksum": -6, "length": -2}[where]] ^= 0x55
    (tmp_path / "b.nii.gz").write_bytes(content)
    with pytest.raises(VolumeError, match="b.nii.gz: cannot be read"):
        read_volume(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("suffix", ["mha", "mhd", "nrrd"])
@pytest.mark.parametrize("place", [0.5, 0.9, -1, -5], ids=["voxels", "later voxels", "checksum", "checksum's begin"])
def test_compressed_voxels_that_itk_would_fill_in_cannot_be_read(suffix, place, tmp_path):
    image = itk.image_from_array(np.random.default_rng(0).integers(0, 99, (30, 20, 20)).astype(np.int16))
    itk.imwrite(image, str(tmp_path / f"a.{suffix}"), compression=True)
    read_volume(tmp_path / f"a.{suffix}")
    file = tmp_path / ("a.zraw" if suffix == "mhd" else f"a.{suffix}")
    content = bytearray(file.read_bytes())
    content[int(len(content) * place) if place > 0 else place] ^= 0x55
    file.write_bytes(content)
    with pytest.raises(VolumeError, match=f"a.{suffix}: cannot be read"):
        read_volume(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("name", ["a.Nii", "a.NII.GZ", "a.nii.Gz"])
def test_endings_are_read_in_any_case(name, tmp_path):
    written = write_nifti(tmp_path / name.lower(), VALUES.astype(np.int16))
    np.testing.assert_array_equal(read_volume(written.rename(tmp_path / name))[0].numpy(), VALUES)


def test_half_of_a_pair_of_files_is_refused(tmp_path):
    nib.save(nib.Nifti1Pair(VALUES.astype(np.int16), AFFINE), tmp_path / "a.hdr")
    (tmp_path / "a.hdr").rename(tmp_path / "b.nii")
    with pytest.raises(VolumeError, match="b.nii: is a header whose voxels are in another file"):
        read_volume(tmp_path / "b.nii")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="there is no such file"):
        read_volume(tmp_path / "a.nii.gz")


def test_endings_tell_volumes_in_any_case():
    names = ("a.nii", "a.NII.GZ", "a.Mha", "a.nrrd", "a.mhd", "a.txt", "nii.gz", "a.gz")
    assert [volume_suffix(name) for name in names] == [".nii", ".nii.gz", ".mha", ".nrrd", ".mhd", None, None, None]
