"""What the bytes of an image file are, and its stored pixels: JPEG, PNG, TIFF and what else OpenCV decodes."""

import io
import struct
import warnings
from typing import Any, Dict, Optional, Tuple

import cv2
import numpy as np
from PIL import Image

from ..utils.errors import ConfigError
from ..utils.files import PathLike
from .files import shown

MAX_PIXELS = 1 << 27  # 400 MB as RGB; a damaged header can claim 65535 x 65535
_RGB = getattr(cv2, 'IMREAD_COLOR_RGB', cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
_SWAP = not hasattr(cv2, 'IMREAD_COLOR_RGB')  # OpenCV before 4.11
_REDUCED = {factor: getattr(cv2, f'IMREAD_REDUCED_GRAYSCALE_{factor}') for factor in (2, 4, 8)}  # without a colour flag
_HEIC = (b'he', b'mi', b'ms')  # the brands heic, heix, hevc, mif1, msf1
_UNREAD = {
    b'GIF8': 'a GIF',
    b'\xff\x0a': 'a JPEG XL image',
    b'\0\0\0\x0cJXL': 'a JPEG XL image',
    b'8BPS': 'a Photoshop file',
    b'%PDF': 'a PDF',
    b'<svg': 'an SVG drawing',
    b'\x89HDF': 'an HDF5 file',
}
_ELSE = {
    b'<!DOCTYPE': 'a web page',
    b'<html': 'a web page',
    b'<?xml': 'an XML file',
    b'version https://git-lfs': 'a pointer of Git LFS in place of the file (git lfs pull)',
}


def jpeg_head(data: bytes) -> Tuple[bool, Optional[Tuple[int, int]]]:
    """Whether a JPEG has its end marker, and its (height, width) by its header; None: not found before the first scan.

    libjpeg paints what is missing grey, and OpenCV 4 passes that on.
    """
    at, size = 2, None
    while data[at : at + 1] == b'\xff' and at + 4 <= len(data):  # skip the head: a preview in it has its own end marker
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:
            return data.rfind(b'\xff\xd9') > at, size
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame
            found = int.from_bytes(data[at + 5 : at + 7], 'big'), int.from_bytes(data[at + 7 : at + 9], 'big')
            size = max(size or found, found, key=lambda sides: sides[0] * sides[1])
        at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    return False, size


def size_fault(data: bytes, pixels: Optional[int]) -> Optional[str]:
    """What is wrong with the size in the header, by which OpenCV would take memory before it looks further; None:
    nothing."""
    jpeg = pixels is not None
    if not jpeg:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of large images, and of what is odd in a header
                image = Image.open(io.BytesIO(data))
                pixels, jpeg = image.size[0] * image.size[1], image.format == 'JPEG'
        except Image.DecompressionBombError:
            pixels = MAX_PIXELS + 1
        except Exception:  # not a header that Pillow knows, or a damaged one: OpenCV decides, up to its own limit
            return None
    if pixels > MAX_PIXELS:
        return f'has more than {MAX_PIXELS} pixels by its header'
    if jpeg and pixels > 1024 * len(data):  # a blank one takes three times as many bytes
        return f'claims {pixels} pixels in {len(data)} bytes: its header is damaged, or the rest of it is missing'
    return None


def _tiff_fields(data: bytes) -> Dict[int, Tuple[int, int]]:
    """Of the first image in a TIFF: tag to (its first value, where it stands in the file), whole numbers alone; {} if
    it can't be read."""
    order = '<' if data[:2] == b'II' else '>'
    fields: Dict[int, Tuple[int, int]] = {}
    try:
        big = struct.unpack_from(order + 'H', data, 2)[0] == 43
        at = struct.unpack_from(order + ('Q' if big else 'I'), data, 8 if big else 4)[0]
        count = struct.unpack_from(order + ('Q' if big else 'H'), data, at)[0]
        at += 8 if big else 2
        for _ in range(min(count, 1000)):
            tag, kind = struct.unpack_from(order + 'HH', data, at)
            length = struct.unpack_from(order + ('Q' if big else 'I'), data, at + 4)[0]
            code, size = {3: ('H', 2), 4: ('I', 4), 1: ('B', 1)}.get(kind, ('', 0))
            value = at + (12 if big else 8)
            if code:
                if length * size > (8 if big else 4):
                    value = struct.unpack_from(order + ('Q' if big else 'I'), data, value)[0]
                fields[tag] = struct.unpack_from(order + code, data, value)[0], value
            at += 20 if big else 12
    except struct.error:
        return {}
    return fields


ORIENTATION, _SAMPLES, _DEPTH, _FORMAT, _COLOURS = 274, 277, 258, 339, 262


def decode_tiff(path: PathLike, data: bytes, channels: int) -> Optional[np.ndarray]:
    """Its first image as it is stored, [H, W] or [H, W, C]; OpenCV's reader where it knows the kind, else
    tifffile's; None: none reads it.

    Raises:
        ConfigError: it needs tifffile, which is not installed.
    """
    fields = _tiff_fields(data)
    if not fields:
        return None
    if fields.get(ORIENTATION, (1, 0))[0] != 1:  # OpenCV obeys it whatever it is told: say that the pixels are upright
        value, changed = fields[ORIENTATION][1], bytearray(data)
        changed[value : value + 2] = b'\1\0' if data[:2] == b'II' else b'\0\1'
        data = bytes(changed)
    samples, depth = fields.get(_SAMPLES, (1, 0))[0], fields.get(_DEPTH, (1, 0))[0]
    colours = fields.get(_COLOURS, (1, 0))[0]
    found = None
    if (
        colours in (3, 5, 6, 8)
        or (depth <= 8 and samples == 1 and colours != 1)
        or (colours == 2 and samples == 3 and depth == 8 and channels in (1, 3))
    ):
        found = by_opencv(data)  # a palette, CMYK, YCbCr, Lab, white as zero, RGB; alpha it would multiply with
    elif depth <= 8 and samples == 1 and channels in (1, 3) and fields.get(_FORMAT, (1, 0))[0] == 1:
        found = by_opencv(data, cv2.IMREAD_UNCHANGED if depth == 8 else _RGB)
    if found is not None:
        return found
    try:
        import tifffile
    except ImportError:
        tifffile = None
        if samples not in (1, 3) and colours != 2:
            raise ConfigError(
                f'image {shown(path)} is a TIFF of {samples} channels, which is read by tifffile: pip install tifffile.'
            ) from None
    found = tifffile and _by_tifffile(tifffile, data, samples == 1 and channels not in (1, 3))
    if found is None and samples in (2, 4) and depth == 8:
        found = _with_alpha(data)
    if found is None and (
        samples in (1, 3) or (colours == 2 and channels in (1, 3))
    ):  # a codec that tifffile has no package for
        found = by_opencv(data, cv2.IMREAD_UNCHANGED)
        found = found if found is None or found.ndim == 2 else cv2.cvtColor(found, cv2.COLOR_BGR2RGB)
    if found is None:
        return None
    if colours == 0 and found.dtype.kind == 'u':  # white is zero
        found = np.iinfo(found.dtype).max - found
    return found[..., :3] if colours == 2 and channels in (1, 3) and found.ndim == 3 else found  # without alpha


def _with_alpha(data: bytes) -> Optional[np.ndarray]:
    """Grey or colours and alpha by Pillow, which does not multiply with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of large images
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(image) if image.mode in ('LA', 'RGBA') else None
    except Exception:  # of many classes, for what is damaged
        return None


def _by_tifffile(tifffile: Any, data: bytes, pages: bool) -> Optional[np.ndarray]:
    """[H, W] or [H, W, C]; channels may lie in planes. ``pages``: and in pages, of which else the first is taken."""
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            first = file.series[0] if pages else file.pages[0]
            if first.size > 4 * MAX_PIXELS:
                return None
            axes, found = first.axes, first.asarray()
    except Exception:  # tifffile has no one class for what it can't read
        return None
    for axis in [axis for axis, length in zip(axes, found.shape) if length == 1 and axis not in 'YX']:
        found, axes = found.squeeze(axes.index(axis)), axes.replace(axis, '', 1)
    if found.ndim == 3 and {'Y', 'X'} <= set(axes):
        return np.ascontiguousarray(np.moveaxis(found, [axes.index('Y'), axes.index('X')], [0, 1]))
    return found if axes == 'YX' else None


def by_opencv(data: bytes, flags: int = _RGB) -> Optional[np.ndarray]:
    """What OpenCV decodes: uint8 [H, W, 3], RGB, or what ``flags`` ask for; None: it does not know it."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    in_colours = image is not None and image.ndim == 3 and flags != cv2.IMREAD_UNCHANGED
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if in_colours and _SWAP else image


def decode_jpeg(data: bytes, factor: int = 1) -> Optional[np.ndarray]:
    """RGB at 1 / factor (1, 2, 4 or 8) of its size, uint8 [ceil(H / factor), ceil(W / factor), 3]; None:
    it cannot be decoded."""
    flags = _RGB if factor == 1 else _RGB & ~cv2.IMREAD_COLOR | _REDUCED[factor]
    return by_opencv(data, flags | (cv2.IMREAD_COLOR if _SWAP else 0))


def decode_png(data: bytes, channels: int) -> Optional[np.ndarray]:
    """A PNG of 16 bits, or one whose alpha is wanted: [H, W] or [H, W, C]; None: it cannot be decoded."""
    image = by_opencv(data, cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim == 2:
        return image
    if image.shape[2] == 4:
        return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if channels == 4 else cv2.COLOR_BGRA2RGB)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def other_kind(data: bytes) -> Tuple[str, str]:
    """What a file is that could not be decoded, by its first bytes, and what to do about it."""
    kind = None
    if data[4:8] == b'ftyp':
        brand = data[8:12]
        kind = 'an AVIF image' if brand[:3] == b'avi' else 'a HEIC image' if brand[:2] in _HEIC else 'a film'
    elif data[128:132] == b'DICM':
        kind = 'a DICOM image'
    kind = kind or next((kind for start, kind in _UNREAD.items() if data.startswith(start)), None)
    if kind:
        return f'{kind}, which is not read', 'convert it to JPEG, PNG or TIFF'
    kind = next((kind for start, kind in _ELSE.items() if data.startswith(start)), None)
    return kind or 'damaged or no image', 'fetch it again'
