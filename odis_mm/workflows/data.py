"""The data of a comparison: splits, subsets of the labels, and no image on both sides."""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..datasets.annotations import coco_table
from ..datasets.demo import ensure_demo
from ..datasets.image_io import size_of
from ..datasets.layout import (
    SPLITS,
    Split,
    categories,
    find_splits,
    image_folder,
    read_coco,
    split_coco,
    told_of_found,
    without_objects,
)
from ..datasets.segmentation import usable
from ..datasets.survey import turned_of
from ..datasets.values import identity, is_crowd, number, numbering
from ..objects.annotations import imported_splits
from ..objects.formats import UnrecognisedError
from ..utils.errors import AnnotationError, ConfigError
from ..utils.files import atomic_write_text
from ..utils.paths import check_work_dir, left_out, of_other_images, walk_images
from . import leaks
from .plan import Plan, resolve


@dataclass
class Prepared:
    """Data of a comparison, normalised: categories by id, absolute file names, duplicates left out.

    Attributes:
        train, val: The json files. ``test`` is None where there is none.
        pretraining: Folders with a ``train.json`` each, with and without boxes.
        subsets: (percent, detector seed) to the json of the labelled images.
        identity: Hash of images and annotations by part: what stages depend on.
        images: Number of images by part.
        scenes: By part, the evaluated images whose scene is in the training as well, and one such training image.
        duplicates: Images that were found twice, and what was done with them.
        mixed: Whether some training objects have a mask and some objects, of any split, have none.
    """

    train: Path
    val: Path
    test: Optional[Path]
    pretraining: Dict[bool, Path]
    subsets: Dict[Tuple[float, int], Path]
    identity: Dict[str, str]
    images: Dict[str, int]
    scenes: Dict[str, Dict[str, str]]
    duplicates: List[Tuple[str, str, str]]
    notes: List[str]
    mixed: bool = False


def prepare(plan: Plan, folder: Path, work_dir: Path, say: Callable[[str], None] = print) -> Prepared:
    """Find the data, look for leaks, and write the normalised annotations and the subsets of labels below
    ``work_dir/data``.

    Raises:
        LeakError: images are both trained on and evaluated, and the plan does not allow it.
        ConfigError: no annotations, a split without objects, or one image to evaluate.
    """
    out = work_dir / 'data'
    out.mkdir(parents=True, exist_ok=True)
    splits, notes = _splits(plan, folder, out)
    contents = {name: normalised(split, notes) for name, split in splits.items()}
    for content in contents.values():
        notes += turned_of(content['images'])
    known = {c['name'] for c in contents['train']['categories']}
    named = {c['id']: c['name'] for c in contents['train']['categories']}
    for name, content in contents.items():
        for key, kind in ((category['id'], category['name']) for category in content['categories']):
            if named.get(key, kind) != kind or (key not in named and kind in known):
                number, other = next(pair for pair in named.items() if pair[0] == key or pair[1] == kind)
                raise ConfigError(
                    f'{splits[name].ann_file}: category {key} is {kind!r}, and category {number} is {other!r} in '
                    f'{splits["train"].ann_file}: number the classes alike in both.'
                )
        left = [a['category_id'] for a in content['annotations'] if a['category_id'] not in named]
        if left:
            strange = sorted({c['name'] for c in content['categories'] if c['id'] in left})
            notes.append(
                f'{len(left)} objects of the {name} split are of classes without a training object '
                f'({", ".join(strange)}), and are not evaluated'
            )
            content['annotations'] = [a for a in content['annotations'] if a['category_id'] in named]
        content['categories'] = contents['train']['categories']
        absent = without_objects(content, content['categories'])
        if absent:
            notes.append(f'the {name} split has no object of: {absent}')
        if not content['images'] or all(a['iscrowd'] for a in content['annotations']):
            raise ConfigError(
                f'{splits[name].ann_file}: the {name} split has no object of the classes {sorted(known)}.'
            )
        if name != 'train' and len(content['images']) < 2:
            raise ConfigError(
                f'{splits[name].ann_file}: the {name} split has one image, from which nothing can be said of others: '
                'evaluate two or more (a larger data.held_out holds more training images out).'
            )
    paths = {name: [Path(image['file_name']) for image in content['images']] for name, content in contents.items()}
    if plan.data.unlabelled:
        paths['unlabelled'] = _image_files(resolve(plan.data.unlabelled, folder), notes)
    notes += _unused(splits, paths)
    total = sum(map(len, paths.values()))
    if total > 2000:
        say(f'looking for images that are in two splits, among {total}')
    prints = {name: leaks.fingerprints(files) for name, files in paths.items()}
    for name, found in prints.items():
        missing = [str(path) for path, digest in zip(found.paths, found.digests) if not digest]
        if len(missing) == len(found.paths) and name in splits:
            other = of_other_images(splits[name].ann_file, [Path(path).name for path in missing], splits[name].images)
            if other:
                raise AnnotationError(other)
        if missing:
            raise ConfigError(
                f'{len(missing)} images of the {name} split cannot be read, the first is {missing[0]}: fetch them '
                'again, or remove them from the data (odis-mm verify --clean writes such annotations).'
            )
    trained = [name for name in ('train', 'unlabelled') if name in prints]
    evaluated = [name for name in ('val', 'test') if name in prints]

    def alike(gone: set) -> List[Tuple[str, leaks.Duplicate]]:
        left = [prints[part].without(gone) for part in trained]
        return [(name, pair) for name in evaluated for part in left for pair in leaks.duplicates(prints[name], part)]

    found = alike(set())
    same = more = [pair for _, pair in found if pair.kind != 'scene']
    if same and plan.data.duplicates == 'refuse':
        raise leaks.LeakError(leaks.message(same))
    if same and plan.data.duplicates == 'drop':
        gone: set = set()
        while more:  # an image may be there more than once, and only the most similar copy is told
            gone |= {pair.trained for pair in more}
            found = alike(gone)
            more = [pair for _, pair in found if pair.kind != 'scene']
            same = same + more
        contents['train'] = _without(contents['train'], gone)
        paths['train'] = [path for path in paths['train'] if path not in gone]
        paths['unlabelled'] = [path for path in paths.get('unlabelled', []) if path not in gone]
        notes.append(f'{len(gone)} training images that are evaluated, too, are left out of the training')
    if plan.tuning.trials and 'test' in prints:
        seen = [pair for pair in leaks.duplicates(prints['test'], prints['val']) if pair.kind != 'scene']
        if seen:
            notes.append(
                f'{len(seen)} test images are among the val images, by which trials are chosen '
                f'({seen[0].evaluated.name} = {seen[0].trained.name}): where the test images are evaluated, the gains '
                'are a little too high'
            )
    if not _learned(contents['train']):
        raise ConfigError(
            f'{splits["train"].ann_file}: no training image with an object is left'
            + (' without those that are evaluated, too: name other images to evaluate.' if same else '.')
        )
    masks = {
        name: {bool(usable(a.get('segmentation'))) for a in content['annotations']}  # crowd regions, too: as detectors
        for name, content in contents.items()
    }
    mixed = True in masks['train'] and any(False in found for found in masks.values())
    if mixed and plan.detector.config is None:
        notes.append('some objects have no segmentation, so the detector is one of boxes')
    digest_of = {path: digest for found in prints.values() for path, digest in zip(found.paths, found.digests)}
    written, identity = {}, {}
    for name, content in contents.items():
        identity[name] = content_hash(_by_digest(content, digest_of))
        written[name] = write_once(out / f'{name}-{identity[name]}.json', content)
    labelled = {digest_of[path] for path in paths['train']}
    extra = [path for path in paths.get('unlabelled', []) if digest_of[path] not in labelled]
    again = len(paths.get('unlabelled', [])) - len(extra)
    if again:  # else each would be listed twice, with its boxes and as a whole image
        notes.append(f'{again} unlabelled images are training images, too, and are listed once, with their boxes')
    identity['pretraining'] = content_hash([identity['train'], [digest_of[path] for path in extra]])
    pretraining = {}
    for boxes in (True, False):
        content = _with_images(contents['train'], extra, boxes)
        place = out / f'pretraining-{"boxes" if boxes else "plain"}-{identity["pretraining"]}'
        place.mkdir(exist_ok=True)
        write_once(place / 'train.json', content)
        pretraining[boxes] = place
    subsets = {}
    for seed in range(plan.seeds.detector):
        for percent, content in label_subsets(contents['train'], plan.labels, seed).items():
            chosen = content_hash([[image['id'] for image in content['images']], identity['train']])
            name = f'train-{percent:g}pct-seed{seed}-{chosen}.json'
            subsets[percent, seed] = write_once(out / name, content)
    return Prepared(
        written['train'],
        written['val'],
        written.get('test'),
        pretraining,
        subsets,
        identity,
        {**{name: len(content['images']) for name, content in contents.items()}, 'unlabelled': len(extra)},
        {
            name: {
                str(pair.evaluated): str(pair.trained) for part, pair in found if (part, pair.kind) == (name, 'scene')
            }
            for name in ('val', 'test')
        },
        [(str(pair.evaluated), str(pair.trained), pair.kind) for pair in same],
        notes,
        mixed,
    )


def label_subsets(content: dict, percentages: Sequence[float], seed: int) -> Dict[float, dict]:
    """The training annotations of the first images of one random order that has objects first: a smaller subset is part
    of a larger one."""
    annotated = {a['image_id'] for a in _learned(content)}
    images = [image for image in content['images'] if image['id'] in annotated]
    order = np.random.default_rng(seed).permutation(len(images))
    found = {}
    for percent in percentages:
        count = max(1, round(len(images) * percent / 100))
        chosen = {images[i]['id'] for i in order[:count]}
        found[percent] = {
            **content,
            'images': [image for image in images if image['id'] in chosen],
            'annotations': [a for a in content['annotations'] if a['image_id'] in chosen],
        }
    return found


def _learned(content: dict) -> List[dict]:
    """The objects that a detector learns: neither crowd regions nor less than a pixel wide or high."""
    return [a for a in content['annotations'] if not a['iscrowd'] and min(a['bbox'][2:]) >= 1]


def _splits(plan: Plan, folder: Path, out: Path) -> Tuple[Dict[str, Split], List[str]]:
    data, notes = plan.data, []
    if data.demo:
        root = Path(ensure_demo('data/odis_demo', num_train=data.demo)).resolve()
    else:
        root = resolve(data.root, folder)
    named = {name: getattr(data, name) for name in ('train', 'val', 'test') if getattr(data, name)}
    images = resolve(data.images, root) if data.images else None
    found = {}
    if not {'train', 'val'} <= set(named):
        check_work_dir(out.parent, root)
        found = find_splits(root, set(SPLITS) - set(named), images)
        notes += told_of_found(found['train'].ann_file) if 'train' in found else []
    for name, file in named.items():
        path = resolve(file, root)
        found[name] = Split(path, images or image_folder(path, root, name))
    if images is not None:
        found = {name: Split(split.ann_file, images) for name, split in found.items()}
    if 'train' not in found:
        try:
            found = {**imported_splits(root, images, out / 'imported'), **found}
        except UnrecognisedError:
            pass
    if 'train' not in found:
        raise ConfigError(
            f'{root} holds no annotations of training images (looked for COCO-style json, YOLO, Pascal VOC and '
            'others): put them there, or name a COCO-style json as data.train in a plan (with --data: --set '
            'data.train=FILE).'
        )
    if data.demo and plan.tuning.trials:
        found['test'] = found.pop('val')  # trials are chosen by other images
    if 'val' not in found:
        content = read_coco(found['train'].ann_file)
        if content.get('annotations'):
            coco_table(content, found['train'].ann_file)  # says what is not understood
        parts = split_coco(content, data.held_out, seed=0)
        for name, part in zip(('train', 'val'), parts):
            path = write_once(out / f'cut-{name}-{content_hash(part)}.json', part)
            found[name] = Split(path, found['train'].images)
        notes.append(f'no val split: {len(parts[1]["images"])} of {len(content["images"])} images are held out for it')
    return found, notes


def normalised(split: Split, notes: List[str]) -> dict:
    """Return annotations as all readers take them: numbers for text, absolute file names, and no object without a box,
    a class or an image, which ``notes`` tell of."""
    content = read_coco(split.ann_file)
    boxed = np.zeros(0, bool)
    if content.get('annotations'):
        table = coco_table(content, split.ann_file)  # says what is not understood
        boxed = _is_box(table['boxes'], *table['sizes'][table['owner']].T)
    if not boxed.all():  # as for detectors: whatever one finds, they would count as missed
        notes.append(
            f'{split.ann_file}: {np.count_nonzero(~boxed)} objects are left out, whose box is no box, or outside of '
            'its image'
        )
    try:
        listed = [dict(id=identity(c['id']), name=str(c['name'])) for c in categories(content)]
        plain = [_plain(a) for a in content.get('annotations') or ()]
    except (KeyError, ValueError) as error:
        raise AnnotationError(
            f'annotation file {split.ann_file}: a category without a name, or an area that is no number ({error}); fix '
            'or remove it.'
        ) from error
    known = {c['id'] for c in listed}
    folder = Path(split.images).resolve()
    ids = [identity(image['id']) for image in content['images']]
    new = numbering(ids)  # as for detectors, so that AP here is by the same ids
    placed = np.array([a['category_id'] in known and a['image_id'] in new for a in plain], bool)
    if not placed.all():
        left = np.count_nonzero(~placed)
        notes.append(f'{split.ann_file}: {left} objects are left out, whose class or image is not listed')
    return dict(
        images=[
            {**image, 'id': new[key], 'file_name': str(folder / image['file_name'])}
            for key, image in zip(ids, content['images'])
        ],
        annotations=[
            {'iscrowd': 0, 'area': float(a['bbox'][2] * a['bbox'][3]), **a, 'id': i + 1, 'image_id': new[a['image_id']]}
            for i, (a, there) in enumerate(zip(plain, boxed & placed))
            if there
        ],
        categories=listed,
    )


def _is_box(boxes: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Which boxes (float [n, 4], xyxy) are neither NaN, nor turned inside out, nor outside of their image: bool [n]."""
    x1, y1, x2, y2 = boxes.T
    there = np.isfinite(boxes).all(1) & (x2 >= x1) & (y2 >= y1)
    return there & (x2 > 0) & (x1 < width) & (y2 > 0) & (y1 < height)


def _plain(annotation: dict) -> dict:
    """The same with numbers for those that are text."""
    kind, crowd = annotation.get('category_id'), annotation.get('iscrowd', 0)
    found = {
        **annotation,
        'image_id': identity(annotation['image_id']),
        'category_id': None if kind is None else identity(kind),
        'bbox': [value if type(value) in (int, float) else number(value) for value in annotation['bbox']],
    }
    if type(crowd) is not int or annotation.get('ignore'):
        found['iscrowd'] = int(is_crowd(annotation))
    area = annotation.get('area')
    told = None if area is None or (isinstance(area, str) and not area.strip()) else number(area)
    if told is None or not 0 <= told < math.inf:  # of these, pycocotools counts none
        found.pop('area', None)  # that of the box
    elif isinstance(area, str):
        found['area'] = told
    return found


def _without(content: dict, paths: set) -> dict:
    kept = [image for image in content['images'] if Path(image['file_name']) not in paths]
    ids = {image['id'] for image in kept}
    return {**content, 'images': kept, 'annotations': [a for a in content['annotations'] if a['image_id'] in ids]}


def _with_images(content: dict, paths: Sequence[Path], boxes: bool) -> dict:
    """Further images without objects; without ``boxes`` no image has any. No class is told in either case."""
    first = 1 + max((image['id'] for image in content['images'] if isinstance(image['id'], int)), default=0)
    further = []
    for i, path in enumerate(paths):
        height, width = size_of(path)
        further.append(dict(id=first + i, file_name=str(path), width=width, height=height))
    one = [dict(id=1, name='object')]
    annotations = [{**a, 'category_id': 1} for a in content['annotations']] if boxes else []
    return dict(images=[*content['images'], *further], annotations=annotations, categories=one)


def _unused(splits: Dict[str, Split], paths: Dict[str, List[Path]]) -> List[str]:
    """A line for each folder of images some of which no split lists."""
    used = {os.path.normpath(path) for files in paths.values() for path in files}
    lines = []
    for folder in dict.fromkeys(Path(split.images).resolve() for split in splits.values()):
        left = [path for path in walk_images(folder)[0] if not used & {path, os.path.realpath(path)}]
        if left:
            lines.append(
                f'{len(left)} images in {folder} are in no annotations of a split, and are not used '
                f'({os.path.relpath(left[0], folder)}{", ..." if len(left) > 1 else ""}); to pretrain on them, too, '
                f'add --set data.unlabelled={quote(str(folder))} --duplicates drop, which leaves out what is evaluated'
            )
    return lines


def _image_files(folder: Path, notes: List[str]) -> List[Path]:
    unread: List[str] = []
    found = sorted(map(Path, walk_images(folder, unread)[0]))
    told = [f'data.unlabelled: {line}' for _, line in left_out(folder, [], unread, len(found))]
    if not found:
        raise ConfigError(f'{"".join(told) or f"data.unlabelled: no image in or below {folder}"}.')
    notes += told
    return list(dict.fromkeys(path.resolve() for path in found))  # of links to one image, one


def content_hash(content: Any) -> str:
    """Return ten hexadecimal digits that depend on a JSON-like content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _by_digest(content: dict, digest_of: Dict[Path, str]) -> dict:
    """Annotations with what is in the images in place of where they are: data that is moved is the same data."""
    images = [{**image, 'file_name': digest_of[Path(image['file_name'])]} for image in content['images']]
    return {**content, 'images': images}


def write_once(path: Path, content: dict) -> Path:
    """Write a file whose name holds a hash of its content; an existing one only if the images have moved."""
    text = json.dumps(content)
    if not path.is_file() or path.read_text() != text:
        atomic_write_text(path, text)
    return path.resolve()
