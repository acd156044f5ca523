"""What a data set holds, found before training: from annotations and image headers, no image is decoded."""

import os
from dataclasses import dataclass
from typing import List, Optional, Sequence

import numpy as np

from ..utils.errors import BadImageError, printable
from ..utils.files import PathLike
from .image_io import orientation_of, size_of
from .values import side


@dataclass(frozen=True)
class Survey:
    """Numbers of a data set.

    Attributes:
        images: How many there are.
        annotated: How many of them have an object.
        objects: How many objects there are in all.
        sizes: int [n, 2], height and width of up to ``limit`` images, evenly spread.
        shares: float [m], of each object of these images its area as a share of its image's.
    """

    images: int
    annotated: int
    objects: int
    sizes: np.ndarray
    shares: np.ndarray

    def words(self) -> str:
        """Return one line for people."""
        low, middle, high = np.percentile(self.sizes.min(1), (5, 50, 95))
        text = f'{self.images} images, short side {middle:.0f} px (5 to 95 %: {low:.0f} to {high:.0f})'
        if not self.objects:
            return f'{text}, no objects'
        small, median, large = 100 * np.percentile(self.shares, (5, 50, 95))
        return (
            f'{text}; {self.objects} objects in {self.annotated} of them, median area {median:.2g} % of the image '
            f'(5 to 95 %: {small:.2g} to {large:.2g})'
        )


def survey(dataset, limit: int = 2000) -> Survey:
    """Look at the annotations of a whole ``ObjectDataset``, and at sizes of up to ``limit`` images.

    Raises:
        BadImageError: no header of these images can be read.
    """
    counts = np.array([len(dataset.get_data_info(i)['bboxes']) for i in range(len(dataset))])
    sizes, shares = [], []
    for i in spread(len(dataset), limit):
        info = dataset.get_data_info(int(i))
        size = image_size(info)
        if size is None:
            continue
        sizes.append(size)
        boxes = np.asarray(info['bboxes'], np.float64).reshape(-1, 4)
        shares.append((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (size[0] * size[1]))
    if not sizes:
        raise BadImageError(
            'no image of the data set can be read: check the paths (odis-mm verify names each bad one).'
        )
    return Survey(
        len(dataset), int((counts > 0).sum()), int(counts.sum()), np.array(sizes), np.concatenate(shares).clip(0, 1)
    )


FEW = 2  # patches
HEADERS = 1000  # images whose EXIF orientation is looked at


@dataclass(frozen=True)
class Visibility:
    """How the global views of a recipe show the objects of a data set.

    Attributes:
        share: Of the images, those that show their object in all these views.
        few: Of these images, those whose object covers at most ``FEW`` patches of one of these views.
        patches: Of these images, the median number of patches that the object covers in the view with fewer of them.
    """

    share: float
    few: float
    patches: float


def visibility(dataset, sampler, limit: int = 1000) -> Visibility:
    """Return how views show the objects, by drawing those of up to ``limit`` images.

    An image without objects is its own object and counts as showing it.

    Args:
        dataset: An ``ObjectDataset``; its pipeline is not run.
        sampler: A ``SampleViews``.
    """
    shown, covered = [], []
    for i in spread(len(dataset), limit):
        info = dict(dataset.get_data_info(int(i)))
        size = (1, 1) if not len(info['bboxes']) else image_size(info)
        if size is None:
            continue
        drawn = sampler.transform(
            {**info, 'height': size[0], 'width': size[1], 'rng': np.random.default_rng((0, int(i)))}
        )
        views = range(drawn['view_roles'].count('global'))  # they come first
        shown.append(all(drawn['object_visible'][view] for view in views))
        if shown[-1]:
            covered.append(min(drawn['patch_masks'][view].sum() for view in views))
    if not covered:
        return Visibility(float(not shown), 0.0, 0.0)
    return Visibility(float(np.mean(shown)), float(np.mean(np.array(covered) <= FEW)), float(np.median(covered)))


def turned(infos: Sequence[dict]) -> List[str]:
    """Return a line if images with objects are turned by an EXIF orientation, and their sizes do not tell whether what
    the boxes were drawn on was: those of 180 degrees and of mirrors, and of square or unknown sizes.

    Args:
        infos: Of each image ``img_path``, ``height`` and ``width`` (None: not told).
    """
    found = []
    for info in infos:
        swapped = info['height'] and info['width'] and info['height'] != info['width']
        if orientation_of(info['img_path']) in (range(2, 5) if swapped else range(2, 9)):
            found.append(info['img_path'])
    if not found:
        return []
    return [
        f'mind: {len(found)} of {len(infos)} images that were looked at have an EXIF orientation '
        f'({printable(str(found[0]))}, ...), which is not applied: if their boxes were drawn on the upright pictures, '
        'store these upright'
    ]


def turned_of(images: Sequence[dict], folder: PathLike = '') -> List[str]:
    """Do :func:`turned` for some images of a COCO-style file, whose names are relative to ``folder``."""
    return turned(
        [
            dict(
                img_path=os.path.join(folder, image['file_name']),
                **{name: side(image.get(name)) for name in ('height', 'width')},
            )
            for image in (images[i] for i in spread(len(images), HEADERS).tolist())
        ]
    )


def image_size(info: dict) -> Optional[Sequence[int]]:
    """Return height and width from the annotation, else from the image; None if neither tells."""
    if info.get('height') and info.get('width'):
        return int(info['height']), int(info['width'])
    try:
        return size_of(info['img_path'])
    except BadImageError:  # training names it; a look at the whole set does not stop at one bad file
        return None


def spread(count: int, limit: int) -> np.ndarray:
    """Return at most ``limit`` indices, evenly over ``count``."""
    return np.arange(count) if count <= limit else np.linspace(0, count - 1, limit).round().astype(int)
