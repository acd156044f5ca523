"""What a reader of another tool's annotations gives, and the search for the images that they mean."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple, Union

from ..datasets.image_io import orientation_of, size_of
from ..datasets.layout import split_of_folders
from ..datasets.objects import list_images
from ..utils.errors import AnnotationError, BadImageError, MissingFileError

Size = Tuple[int, int]  # height, width


@dataclass
class Annotated:
    """One object of an image, as its file has it: pixels of the image.

    Attributes:
        box: x1, y1, x2, y2.
        segmentation: COCO polygons or RLE.
        area: Of the mask, where the file says it.
    """

    label: Union[str, int]
    box: Sequence[float]
    segmentation: object = None
    score: Optional[float] = None
    crowd: bool = False
    area: Optional[float] = None


@dataclass
class Labelled:
    """The objects of one image. ``size`` is what the file says; None where it says nothing."""

    image: str
    objects: List[Annotated]
    size: Optional[Size] = None

    def __post_init__(self):
        self.image = str(self.image)  # a json may hold a number


@dataclass
class ImageIndex:
    """The images below a folder, found by whatever part of their path an annotation file has."""

    folder: Path
    by_name: Dict[str, List[str]] = field(default_factory=dict)
    by_stem: Dict[str, List[str]] = field(default_factory=dict)
    missed: List[str] = field(default_factory=list)  # what was asked for, and is not there

    def __post_init__(self):
        if not self.folder.is_dir():
            raise MissingFileError(f'image folder {self.folder} does not exist.')
        for path in list_images(str(self.folder), tell=False):  # a run on the images does
            name = Path(path).relative_to(self.folder).as_posix()
            self.by_name.setdefault(Path(name).name, []).append(name)
            self.by_stem.setdefault(Path(name).stem, []).append(name)

    def find(self, reference: str, source: Path) -> str:
        """Return the image, relative to the folder, that ``reference`` in the annotation file ``source`` means.

        An image in the folder of another split than the reference, or else the annotation file, is not meant.

        Raises:
            AnnotationError: there is none, or several that fit equally well.
        """
        reference = reference.replace('\\', '/')
        last = reference.rsplit('/', 1)[-1]
        found = self.by_name.get(last) or self.by_stem.get(last) or self.by_stem.get(Path(last).stem) or []
        split = split_of_folders(reference.split('/')[:-1]) or split_of_folders(self._folders(source))
        if split:
            found = [name for name in found if split_of_folders(Path(name).parts[:-1]) in (None, split)]
        if len(found) > 1:  # the longest tail in common decides, that of the annotation file's own place after it
            parts = [part for part in source.with_suffix('').parts if part not in ('labels', 'Annotations')]
            rank = [(_common_tail(name, reference), _shared(name, parts)) for name in found]
            found = [name for name, r in zip(found, rank) if r == max(rank)]
        if not found:
            self.missed.append(reference)
            raise AnnotationError(f'{source}: its image {reference} is not below {self.folder}')
        if len(found) > 1:
            raise AnnotationError(f'{source}: its image {reference} may be {found[0]} or {found[1]}')
        return found[0]

    def fit(self, name: str, reference: str, source: Path) -> Tuple[int, int]:
        """Return how many last parts an image's path shares with the reference to it, and the annotation file's."""
        return _common_tail(name, reference.replace('\\', '/')), _common_tail(name, source.as_posix())

    def _folders(self, source: Path) -> Sequence[str]:
        """The folders of an annotation file inside the data set; none for a file that lies elsewhere."""
        source, folder = source.absolute(), self.folder.absolute()
        for root in (folder, folder.parent):  # data/images has data/labels beside it
            if root in source.parents:
                return source.relative_to(root).parts[:-1]
        return ()

    def size(self, name: str) -> Size:
        """Return height and width of the stored pixels."""
        try:
            return size_of(self.folder / name)
        except BadImageError as error:
            raise AnnotationError(str(error)) from error

    def orientation(self, name: str) -> int:
        """See :func:`~odis_mm.datasets.image_io.orientation_of`."""
        return orientation_of(self.folder / name)


def told_of_other_folders(source: object, pairs: Iterable[Tuple[str, str]]) -> Optional[str]:
    """Return a line for the log about images that were found by their own names, in another folder than the reference
    to them names; None if there are none. Absolute references are of the machine that they were written on.

    Args:
        source: Whose references they are.
        pairs: Of each image its path below the folder of images, and the reference to it.
    """
    other = [
        (name, reference)
        for name, reference in ((name, reference.replace('\\', '/')) for name, reference in pairs)
        if '/' in name
        and '/' in reference
        and not re.match('/|[^/]*:', reference)
        and Path(name).parent.name != Path(reference).parent.name
    ]
    if not other:
        return None
    name, reference = other[0]
    return (
        f'{source}: {len(other)} images lie in another folder than is named there and are taken by their own names '
        f'({name} for {reference}, ...): make sure that they are the same images'
    )


def _common_tail(name: str, reference: str) -> int:
    count = 0
    for a, b in zip(reversed(Path(name).with_suffix('').parts), reversed(Path(reference).with_suffix('').parts)):
        if a != b:
            break
        count += 1
    return count


def _shared(name: str, parts: Sequence[str]) -> int:
    return len(set(Path(name).parts[:-1]) & set(parts))
