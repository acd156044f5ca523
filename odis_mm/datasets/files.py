"""Finding images, and reading lists of them; names may be any bytes, text is UTF-8 with or without a byte order
mark."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from mmengine.logging import print_log

from ..utils.errors import AnnotationError, ConfigError, MissingFileError, printable
from ..utils.files import PathLike, parse_json
from ..utils.paths import IMAGE_SUFFIXES, left_out, of_other_images, walk_images

_NOT_LISTS = {
    '.xml': 'it describes one image (Pascal VOC, CVAT)',
    '.yaml': 'it is the description of a YOLO data set',
    '.yml': 'it is the description of a YOLO data set',
    '.csv': 'it is a table',
}
_CONVERT = (
    'bring the annotations into COCO style first (odis-mm find-objects --source import), or leave ann_file out to '
    'use the images alone'
)


def shown(path: PathLike) -> str:
    """Return a path as text that can be printed and logged: bytes that are no UTF-8 become ``\\xff``."""
    return printable(os.fspath(path))


def list_images(folder: PathLike, tell: bool = True) -> List[str]:
    """Return the paths of all image files in and below a folder, found by :func:`~odis_mm.utils.paths.walk_images`; the
    log says, unless ``tell`` is off, how many folders were left out, and how many images of kinds that are not read.

    Raises:
        ConfigError: there is no image.
    """
    unread: List[str] = []
    names, skipped = walk_images(folder, unread)
    for level, line in left_out(folder, skipped, unread, len(names)) if tell else ():
        print_log(line, logger='current', level=level)
    if not names:
        raise ConfigError(
            f'no image in or below {shown(folder)} (looked for {", ".join(IMAGE_SUFFIXES)}); name the folder '
            'that holds your images (in a config: data_root and data_prefix).'
        )
    return names


def without_links(names: List[str], folder: PathLike) -> List[str]:
    """Return paths without the links to images that are among them under another name; the log says how many."""
    places = {os.path.dirname(name) for name in names}
    links = {entry.path for place in places for entry in os.scandir(place) if entry.is_symlink()}
    if not links:
        return names
    real = lru_cache(maxsize=None)(os.path.realpath)  # of folders: that of a million images would take minutes
    once: Dict[Tuple[str, str], str] = {}
    for name in names:
        path = os.path.join(os.path.dirname(name), os.readlink(name)) if name in links else name
        once.setdefault((real(os.path.dirname(path)), os.path.basename(path)), name)
    if len(once) < len(names):
        print_log(
            f'{shown(folder)}: {len(names) - len(once)} links to images that are there under another name left out',
            logger='current',
        )
    return list(once.values())


def first_present(names: Sequence[str], folder: PathLike, source: str) -> str:
    """Return the first image that is there, of at most 50 that are spread over those of an annotation file or a list;
    the missing ones are for who reads them.

    Raises:
        MissingFileError: none is there.
    """
    for i in range(0, len(names), max(len(names) // 50, 1)):
        if os.path.isfile(os.path.join(folder, names[i])):
            return names[i]
    first = shown(os.path.join(folder, names[0]))
    raise MissingFileError(
        of_other_images(source, names, folder)
        or f'image {first}, the first of {source}, does not exist; check data_root and data_prefix.'
    )


def read_text(path: PathLike) -> str:
    """Return the text of a file: UTF-8, its byte order mark left out, or UTF-16 with one; other bytes survive as they
    do in file names.

    Raises:
        AnnotationError: it is no text.
    """
    data = Path(path).read_bytes()
    try:
        if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
            return data.decode('utf-16')
        text = data.decode('utf-8-sig', 'surrogateescape')
    except UnicodeDecodeError:
        text = '\0'
    if any(sign < ' ' and sign not in '\t\n\r\f' for sign in set(text)):
        raise AnnotationError(
            f'list {shown(path)} is no text; ann_file must be a .json, or a text file with one image path per line.'
        )
    return text


def read_list(path: PathLike, folder: PathLike) -> List[str]:
    """Return the image paths in a text file, one per line.

    Raises:
        AnnotationError: it holds something else, such as the ids of a Pascal VOC list.
    """
    kind = _NOT_LISTS.get(Path(path).suffix.lower())
    if kind:
        raise AnnotationError(f'ann_file {shown(path)} is neither a .json nor a list of images: {kind}; {_CONVERT}.')
    names = [name for name in map(str.strip, read_text(path).splitlines()) if name]
    if not names:
        raise AnnotationError(
            f'list {shown(path)} is empty; write one image path per line, or leave ann_file out to use all images.'
        )
    first = names[0]
    if not first.lower().endswith(IMAGE_SUFFIXES) and not os.path.isfile(os.path.join(folder, first)):
        what = 'a number or name without an ending, as in the id lists of Pascal VOC'
        if len(first.split()) > 1:
            what = 'several words, as in label files of YOLO or lists with classes'
        raise AnnotationError(
            f'list {shown(path)} begins with {shown(first[:80])!r}, which is no image path but {what}; {_CONVERT}.'
        )
    labels = Path(folder, first).parent.parent.parent / 'labels', Path(folder, first).parent.parent / 'labels'
    if any(place.is_dir() for place in labels):
        print_log(
            f'{shown(path)}: the labels beside the images (YOLO) are not read by a list; {_CONVERT}', logger='current'
        )
    return names


def read_json(path: PathLike) -> dict:
    """Return the content of an annotation file.

    Raises:
        AnnotationError: it is no json, or holds no dict.
    """
    try:
        content = parse_json(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f'annotation file {shown(path)} is not valid JSON ({error}); is it complete?') from None
    if not isinstance(content, dict):
        raise AnnotationError(
            f'annotation file {shown(path)} holds a {type(content).__name__}; it must be COCO-style (a dict with '
            'images and annotations) or a dict {image path: [[x1, y1, x2, y2], ...]}.'
        )
    return content
