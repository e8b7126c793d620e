"""Small NIfTI files with one to three faults each: header fields, types, bytes of the stream; by a seed."""

import gzip
from collections.abc import Callable, Iterator
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

SEED = 20260729
SHAPE = (14, 12, 10)
SPACING_MM = (0.8, 1.0, 2.5)
HEADER = nib.Nifti1Header().structarr.dtype
AFTER_HEADER = 352

Random = np.random.Generator
ODD = (0.0, -1.0, np.nan, np.inf, -np.inf, 1e30, 1e-30, 5.0, 0.5)
DATATYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 3, 9999, -1)


def cord(random: Random) -> nib.Nifti1Image:
    """A soft map as float32, a mask as uint8, or fractions of 255 as uint8 with a slope."""
    x, y, _ = np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij")
    distance = np.hypot((x - 7.3) * SPACING_MM[0], (y - 5.6) * SPACING_MM[1])
    values = np.clip(3.5 - distance, 0, 1).astype(np.float32)
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = -5, 3, 40
    kind = random.integers(3)
    stored = (values, values > 0.5, np.round(255 * values))[kind]
    image = nib.Nifti1Image(stored.astype(np.float32 if kind == 0 else np.uint8), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    if kind == 2:
        image.header.set_slope_inter(1 / 255, 0)
    return image


def odd(random: Random) -> float:
    return float(random.choice(ODD))


def change_dim(header: Any, random: Random) -> None:
    header["dim"][random.integers(8)] = random.choice([0, 1, 2, 3, 4, 7, 8, -1, 300, 32767, -32768])


def change_type(header: Any, random: Random) -> None:
    header["datatype"] = random.choice(DATATYPES)
    if random.integers(2):
        header["bitpix"] = random.choice([0, 1, 8, 16, 24, 32, 64, 128, 256, -8])


def change_sizes(header: Any, random: Random) -> None:
    header["pixdim"][random.integers(4)] = odd(random)


def change_scale(header: Any, random: Random) -> None:
    header["scl_slope"], header["scl_inter"] = odd(random), odd(random) if random.integers(2) else 0


def change_sform(header: Any, random: Random) -> None:
    row = header[str(random.choice(["srow_x", "srow_y", "srow_z"]))]
    row[random.integers(4) if random.integers(2) else slice(None)] = odd(random)


def change_codes(header: Any, random: Random) -> None:
    header["sform_code"], header["qform_code"] = random.choice([0, 0, 1, 4, 9, -3], 2)


def change_qform(header: Any, random: Random) -> None:
    header["sform_code"] = random.integers(2)
    header[str(random.choice(["quatern_b", "quatern_c", "quatern_d", "qoffset_z"]))] = odd(random)


def change_offset(header: Any, random: Random) -> None:
    header["vox_offset"] = random.choice([0, 348, 351, 353, 360, 1000, 1e9, 1e30, -352, np.nan, np.inf])


def change_magic(header: Any, random: Random) -> None:
    header["magic"] = random.choice([b"ni1", b"n+2", b"n+1 ", b"", b"abc"])
    header["sizeof_hdr"] = random.choice([348, 348, 540, 0, -1, 1543569408])


def change_meaning(header: Any, random: Random) -> None:
    header["xyzt_units"], header["intent_code"] = random.integers(256), random.integers(-5, 4000)
    header["dim_info"] = random.integers(256)


def change_bytes(header: Any, random: Random) -> None:
    raw = header.reshape(1).view(np.uint8)
    raw[random.integers(raw.size, size=random.integers(1, 12))] = random.integers(256)


FIELDS: tuple[Callable[[Any, Random], None], ...] = (
    change_dim, change_type, change_sizes, change_scale, change_sform, change_codes, change_qform,
    change_offset, change_magic, change_meaning, change_bytes,
)  # fmt: skip


def in_stream(content: bytearray, random: Random) -> bytearray:
    """Extensions that lie, and data that are cut, too long, or odd."""
    kind = random.integers(5)
    if kind == 0:  # an extension of any length, and code, in front of the voxels
        size = random.choice([0, 8, 16, 24, -16, 2**31 - 1, 2**30])
        content[348] = 1
        content[AFTER_HEADER:AFTER_HEADER] = np.array([size, random.integers(50)], np.int32).tobytes()
    elif kind == 1:
        del content[random.integers(len(content)) :]
    elif kind == 2:
        content += bytes(random.integers(256, size=100, dtype=np.uint8))
    elif kind == 3:
        values = np.frombuffer(content, np.uint8)[AFTER_HEADER:]
        values[random.integers(values.size, size=20)] = random.integers(256, size=20)
    else:
        header = nib.Nifti1Header(bytes(content[:348]), check=False).as_byteswapped()
        content[:348] = header.binaryblock
    return content


def in_gzip(content: bytes, random: Random) -> bytes:
    compressed = bytearray(gzip.compress(content, mtime=0))
    kind = random.integers(4)
    if kind == 0:
        del compressed[random.integers(len(compressed)) :]
    elif kind == 1:
        compressed[random.integers(len(compressed))] ^= 1 + random.integers(255)
    elif kind == 2:
        return bytes(content)  # not compressed at all
    else:
        compressed += b"garbage"
    return bytes(compressed)


def fuzzed(number: int, seed: int = SEED) -> Iterator[bytes]:
    """Give the content of so many `.nii.gz` files; those before stay the same with a larger number."""
    for index in range(number):
        random = np.random.default_rng([seed, index])
        content = bytearray(cord(random).to_bytes())
        header = np.frombuffer(content, HEADER, 1).reshape(())
        for _ in range(random.integers(1, 4)):
            FIELDS[random.integers(len(FIELDS))](header, random)
        header = None  # lets go of the buffer
        if random.integers(4) == 0:
            content = in_stream(bytearray(content), random)
        yield in_gzip(bytes(content), random) if random.integers(8) == 0 else gzip.compress(content, mtime=0)


def volume_mm3(file: Any) -> float:
    """The sum of the values that are known (NaN: unknown) times the affine's determinant, by NumPy alone."""
    image = nib.load(file)
    values: npt.NDArray[np.float64] = np.asarray(image.dataobj, dtype=np.float64)
    return float(np.nansum(values) * abs(np.linalg.det(image.affine[:3, :3])))
