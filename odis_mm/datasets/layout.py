"""Where a folder of a user's own data keeps its annotations and images."""

import json
import os
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..utils.errors import AnnotationError, ConfigError, MissingFileError
from ..utils.files import PathLike
from ..utils.paths import IMAGE_SUFFIXES, check_folder, of_other_images, walk_files, walk_images
from .values import identity, is_crowd

SPLITS = {
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation', 'validate', 'eval', 'evaluation', 'dev'),
    'test': ('test', 'testing'),
}
FOUND = 'objects found by odis-mm find-objects'


@dataclass(frozen=True)
class Split:
    """One part of a data set: a COCO-style json and the folder that its file names are relative to."""

    ann_file: Path
    images: Path


def find_splits(
    root: PathLike, wanted: Sequence[str] = tuple(SPLITS), images: Optional[PathLike] = None
) -> Dict[str, Split]:
    """Return the COCO-style annotations in a folder by split: 'train', 'val', 'test', as far as they are there.

    Recognised are COCO's own tree, ``annotations/{train,val,test}.json`` beside ``images/``, exports with one json in
    each folder of images (``train/_annotations.coco.json``), and any other json of COCO style up to two folders deep
    whose name or folder names its split. A json that names no split is 'train'.

    Args:
        root: The folder.
        wanted: The splits that are asked for; what is wrong with others does not matter.
        images: Folder of all images; None: it is looked for near each json.

    Raises:
        MissingFileError: there is no such folder, or a json's images are nowhere near it.
        ConfigError: two files claim the same split, or the folder holds several data sets.
    """
    root = Path(root)
    check_folder(root)
    found: Dict[str, List[Path]] = {}
    for path in _jsons(root):
        if _is_coco(path):
            found.setdefault(_split_of(path.relative_to(root)), []).append(path)
    splits = {}
    for name, paths in found.items():
        if name not in wanted:
            continue
        relative = [path.relative_to(root).parts for path in paths]
        sets = sorted({parts[0] for parts in relative})
        if len(sets) > 1 and all(len(parts) > 2 for parts in relative):
            raise ConfigError(
                f'{root} holds several data sets ({", ".join(sets)}): use one of them, for instance {root / sets[0]}.'
            )
        paths = _preferred(paths)
        if len(paths) > 1:
            raise ConfigError(
                f'{root} holds more than one COCO-style json for the split {name!r} '
                f'({", ".join(map(str, paths[:4]))}): name the one to use (--train FILE --val FILE for a detector, '
                '--boxes FILE for pretraining; odis-mm compare: --set data.train=FILE data.val=FILE).'
            )
        splits[name] = Split(paths[0], Path(images) if images else image_folder(paths[0], root, name))
    return splits


def image_folder(ann_file: PathLike, root: PathLike, split: str = '') -> Path:
    """Return the folder that holds the first images that a COCO-style json names.

    Raises:
        AnnotationError: the json names no image.
        MissingFileError: no folder near the json holds them.
    """
    return _first_image(Path(ann_file), Path(root), split)[0]


def _first_image(ann_file: Path, root: Path, split: str) -> Tuple[Path, str]:
    """See :func:`image_folder`; the folder, and the name of the first image in the json."""
    listed = [image.get('file_name') if isinstance(image, dict) else None for image in read_coco(ann_file)['images']]
    names = listed[:3]
    if not names or not all(isinstance(name, str) for name in names):
        raise AnnotationError(f'{ann_file} names no image: its list "images" must hold entries with a "file_name".')
    words = [split, *SPLITS.get(split, ())]
    near = [ann_file.parent, root, *(root / word for word in words), *(root / f'{word}2017' for word in words)]
    places = (
        near
        + [folder / 'images' for folder in near]
        + [root / 'images' / word for word in words]
        + [root / 'JPEGImages']
    )
    some = [name for name in listed[:50] if isinstance(name, str)]
    for judge, asked in ((all, names), (any, some)):  # a few files may be lost
        for place in dict.fromkeys(places):
            if judge(_is_file(place / name) for name in asked):
                return place, names[0]
    hint = 'name the image folder with --images (odis-mm compare: --set data.images=FOLDER)'
    if '://' in names[0]:
        hint = 'its file names are addresses: fetch the images and write their file names there'
    elif '\\' in names[0]:
        hint = 'its file names are paths of Windows: write them with / in place of \\'
    elif alike := next((path for place in places for path in _same_stem(place / names[0])), None):
        hint = f'there is {alike}, whose ending differs: write the names in the json as those of the files'
    elif other := of_other_images(ann_file, [name for name in listed if isinstance(name, str)], root):
        raise MissingFileError(other)
    raise MissingFileError(
        f'{names[0]}, an image of {ann_file}, is in none of the folders near it '
        f'({", ".join(str(p) for p in near[:3])}, ...): {hint}.'
    )


def _same_stem(path: Path) -> List[Path]:
    """Images whose names differ from that of ``path`` in nothing but the ending."""
    try:
        return [
            other
            for other in path.parent.iterdir()
            if other.stem == path.stem and other.suffix.lower() in IMAGE_SUFFIXES
        ]
    except (OSError, ValueError):  # no folder, or no name
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


def read_coco(path: PathLike) -> dict:
    """Return the content of a COCO-style json.

    Raises:
        AnnotationError: it is no json, or not of that style.
    """
    try:
        content = json.loads(Path(path).read_text('utf-8-sig'))
    except (ValueError, OSError, RecursionError) as error:
        raise AnnotationError(f'{path} cannot be read as json: {error}.') from error
    if not isinstance(content, dict) or not isinstance(content.get('images'), list):
        raise AnnotationError(f'{path} is not of COCO style: it has no list "images".')
    return content


def count_images(folder: PathLike) -> int:
    """Return the number of image files in and below a folder, as :func:`~odis_mm.datasets.files.list_images` finds
    them."""
    return len(walk_images(folder)[0])


def held_out(root: PathLike) -> List[str]:
    """Return what tells that images in and below a folder are those of a validation or test split: folders in it that
    are named so, else COCO-style annotations of such a split, in it or beside it, that list images in it."""
    root = Path(os.path.abspath(root))
    words = {word for name in ('val', 'test') for word in (*SPLITS[name], *(f'{w}2017' for w in SPLITS[name]))}
    folders = {Path(path).relative_to(root).parent for path in walk_images(root)[0]}
    named = sorted({part for folder in folders for part in folder.parts if part.lower() in words})
    near = [(root, path) for path in _jsons(root)] + [(root.parent, path) for path in _jsons_above(root)]
    return named or [
        str(path) for base, path in near if _split_of(path.relative_to(base)) != 'train' and _lists(path, base, root)
    ]


def of_other_splits(root: PathLike) -> List[Path]:
    """Return the COCO-style jsons anywhere below a folder whose names are those of a validation or test split."""
    return [path for path in _jsons(root, None) if _split_of(path.relative_to(root)) != 'train' and _is_coco(path)]


def annotated_parent(folder: PathLike) -> Optional[Path]:
    """Return the folder above one of images, if COCO-style training annotations lie there that list images in it, as
    in ``annotations/train.json`` beside ``images/``."""
    root = Path(os.path.abspath(folder))
    found = (path for path in _jsons_above(root) if _split_of(path.relative_to(root.parent)) == 'train')
    return root.parent if any(_lists(path, root.parent, root) for path in found) else None


def _jsons_above(root: Path) -> List[Path]:
    return [path for folder in ('.', 'annotations') for path in sorted((root.parent / folder).glob('*.json'))]


def _lists(path: Path, near: Path, root: Path) -> bool:
    """Whether a file holds COCO-style annotations whose images lie in ``root``."""
    if not _is_coco(path):
        return False
    try:
        place, name = _first_image(path, near, _split_of(path.relative_to(near)))
    except (AnnotationError, MissingFileError):
        return False
    return Path(os.path.normpath(place / name)).is_relative_to(root)


def _jsons(root: Path, deepest: Optional[int] = 2) -> List[Path]:
    """The json files in and below a folder, by default down to ``deepest`` folders in it, where images are looked for,
    too."""
    found = [Path(name) for name in walk_files(root, []) if name.lower().endswith('.json')]
    return [path for path in found if deepest is None or len(path.relative_to(root).parts) <= deepest + 1]


def _is_coco(path: Path) -> bool:
    """By its beginning: some tools write one small json per image, and reading all of them would take minutes."""
    try:
        with open(path, encoding='utf-8-sig', errors='replace') as file:
            head = file.read(65536)
    except OSError:  # a link to nowhere, or closed to us: found missing where it is asked for
        return False
    if not head.lstrip().startswith('{'):
        return False
    if '"images"' in head and ('"annotations"' in head or '"file_name"' in head):
        return True
    try:  # the keys may stand in any order, behind a long list of annotations
        return path.stat().st_size > 65536 and {'images', 'annotations'} <= set(json.loads(path.read_text('utf-8-sig')))
    except (ValueError, RecursionError):
        return False


def split_named(text: str) -> Optional[str]:
    """Return the split that a word of ``text``, the name of a file or folder, says; None if there is none.

    'test' and 'val' come before 'train': in train_val.json a part is meant.
    """
    words = set(''.join(c if c.isalpha() else ' ' for c in text.lower()).split())
    return next((name for name in ('test', 'val', 'train') if words & set(SPLITS[name])), None)


def split_of_folders(folders: Sequence[str]) -> Optional[str]:
    """Return the split that the last of some nested folders to name one says; None if none does."""
    return next((name for name in map(split_named, reversed(folders)) if name), None)


def _split_of(path: Path) -> str:
    """By the file's name first, then by its folder's."""
    return split_named(path.stem) or split_named(path.parent.name) or 'train'


def _preferred(paths: List[Path]) -> List[Path]:
    """COCO ships captions and key points beside the instances."""
    instances = [path for path in paths if path.stem.startswith('instances')]
    return instances or paths


def split_coco(content: dict, share: float, seed: int) -> Tuple[dict, dict]:
    """Return two COCO-style dicts, the second with ``share`` of the images (at least one), drawn by ``seed``; entries
    of one file stay together.

    Files of the draw change places until each class has an image in the first part and, of two or more, in the second,
    as far as their sizes permit, rare classes first; a draw that is so by itself stays as it is.
    """
    import numpy as np

    images = content['images']
    files = list(dict.fromkeys(image['file_name'] for image in images))
    order = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    count = max(1, round(share * len(files)))
    file_of = {identity(image['id']): image['file_name'] for image in images}
    kinds: Dict[str, set] = {file: set() for file in files}
    for annotation in content.get('annotations') or ():
        file, kind = file_of.get(identity(annotation['image_id'])), annotation.get('category_id')
        if file is not None and kind is not None and not is_crowd(annotation):
            kinds[file].add(identity(kind))
    held = _with_all_classes(order[count:], order[:count], kinds)
    return tuple(
        part_of(content, [image for image in images if (image['file_name'] in held) == inside])
        for inside in (False, True)
    )


def _with_all_classes(rest: List[str], held: List[str], kinds: Dict[str, set]) -> set:
    """The files to hold out in place of ``held``, as many: a file changes places with one of the other side where a
    side lacks a class and no side loses one."""
    sides = dict(held=(held, rest), rest=(rest, held))
    counts = {name: Counter(kind for file in own for kind in kinds[file]) for name, (own, _) in sides.items()}
    total = counts['held'] + counts['rest']

    def loses(name: str, out: str, into: str) -> bool:
        return any(counts[name][kind] == 1 and (name == 'rest' or total[kind] > 1) for kind in kinds[out] - kinds[into])

    for kind in sorted(total, key=lambda kind: (total[kind], str(kind))):
        for name, other in (('rest', 'held'), ('held', 'rest')):
            if counts[name][kind] or (name == 'held' and total[kind] < 2):
                continue
            own, others = sides[name]
            for into, out in product([file for file in others if kind in kinds[file]], reversed(own)):
                if not loses(name, out, into) and not loses(other, into, out):
                    own[own.index(out)], others[others.index(into)] = into, out
                    for side, come, gone in ((name, into, out), (other, out, into)):
                        counts[side].update(kinds[come])
                        counts[side].subtract(kinds[gone])
                    break
    return set(held)


def told_of_found(path: Path) -> List[str]:
    """Return a line if a COCO-style json is what ``find-objects`` wrote to where annotations are looked for."""
    with open(path, 'rb') as file:
        if FOUND.encode() not in file.read(100):
            return []
    return [
        f'{path} holds {FOUND}, which are no annotations, and no others are looked for beside it: if there are some, '
        'move it elsewhere'
    ]


def without_objects(part: dict, names: Sequence[dict]) -> str:
    """Return the names of those categories of which a COCO-style dict has no object, in words; '' if there are none."""
    there = {
        identity(a['category_id'])
        for a in part.get('annotations') or ()
        if a.get('category_id') is not None and not is_crowd(a)
    }
    absent = [str(c.get('name')) for c in names if identity(c['id']) not in there]
    return ', '.join(absent[:8]) + (f' and {len(absent) - 8} more' if len(absent) > 8 else '')


def part_of(content: dict, images: List[dict]) -> dict:
    """Return a COCO-style dict of some of the images and their annotations."""
    ids = {identity(image['id']) for image in images}
    annotations = [a for a in content.get('annotations') or () if identity(a['image_id']) in ids]
    return {**content, 'images': images, 'annotations': annotations}


def categories(content: dict) -> List[dict]:
    """Return the categories of a COCO-style dict that have an object, by id; all of them if none has."""
    kinds = [annotation.get('category_id') for annotation in content.get('annotations') or ()]
    used = {identity(kind) for kind in kinds if kind is not None}

    def key(category: dict) -> Tuple[bool, Any]:
        found = identity(category['id'])
        return isinstance(found, str), found

    listed = sorted(content.get('categories') or (), key=key)
    return [category for category in listed if identity(category['id']) in used] or listed


def check_names(content: dict, path: PathLike) -> None:
    """Refuse a category without a name, by which detectors know classes.

    Raises:
        AnnotationError: there is one; the message names the first.
    """
    for i, category in enumerate(content.get('categories') or ()):
        if category.get('name') is None:
            raise AnnotationError(f'annotation file {path}: categories[{i}] has no name; give it one.')


def find_boxes(data: PathLike) -> Optional[Split]:
    """Return the training annotations of a folder, if :func:`find_splits` finds any."""
    return find_splits(data, ('train',)).get('train')
