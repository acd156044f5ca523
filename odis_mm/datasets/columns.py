"""A data set as a few arrays: no object per image, and nothing that a worker's reference counting would copy."""

import ctypes
import json
import os
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from .segmentation import usable

Arrays = Dict[str, np.ndarray]
_PLAIN = ('ids', 'sizes', 'first', 'boxes', 'labels', 'scores', 'crowd')


class Texts(Sequence):
    """Many strings in one array of bytes."""

    def __init__(self, text: np.ndarray, first: np.ndarray):
        self.text, self.first = text, first

    @classmethod
    def of(cls, strings: Iterable[str]) -> 'Texts':
        """Encode strings as UTF-8; bytes of file names that are none survive."""
        coded = [string.encode('utf-8', 'surrogatepass') for string in strings]
        first = np.zeros(len(coded) + 1, np.int64)
        np.cumsum([len(each) for each in coded], out=first[1:])
        return cls(np.frombuffer(b''.join(coded), np.uint8), first)

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: int) -> str:
        start, stop = self.first[index].item(), self.first[index + 1].item()
        return self.text[start:stop].tobytes().decode('utf-8', 'surrogatepass')


class Masks:
    """The masks of all objects, encoded: coordinates of their polygons in one array, anything else as json text.

    Coordinates with two decimals, as most files have them, are whole hundredths, from which the same numbers come back.
    """

    def __init__(self, points: np.ndarray, polygons: np.ndarray, first: np.ndarray, others: Texts):
        self.points, self.polygons, self.first, self.others = points, polygons, first, others

    @classmethod
    def of(cls, segmentations: Iterable[Any]) -> Tuple['Masks', int]:
        """Encode segmentations; return how many have no mask as well, neither an RLE nor a polygon of three points or
        more."""
        points, ends, first, others, bare = array('d'), array('q', [0]), array('q', [0]), [], 0
        for segm in segmentations:
            segm, text, length = usable(segm), '', len(points)
            if segm is None:
                bare += 1
            elif isinstance(segm, list):
                try:
                    for polygon in segm:
                        points.extend(polygon)
                        ends.append(len(points))
                except (TypeError, OverflowError):  # no numbers; a reader says so when it comes to this image
                    text = json.dumps(segm)
                    del points[length:], ends[first[-1] + 1 :]
            else:
                text = json.dumps(segm)
            first.append(len(ends) - 1)
            others.append(text)
        coordinates = np.frombuffer(points) if points else np.zeros(0)  # not a copy
        return cls(_hundredths(coordinates), np.array(ends), np.array(first), Texts.of(others)), bare

    def get(self, index: int) -> Any:
        """Return the segmentation of an object as its file has it; None if it has none."""
        text = self.others[index]
        if text:
            return json.loads(text)
        found = []
        for polygon in range(self.first[index].item(), self.first[index + 1].item()):
            points = self.points[self.polygons[polygon].item() : self.polygons[polygon + 1].item()]
            found.append((points / 100 if points.dtype == np.int32 else points).tolist())
        return found or None

    def arrays(self) -> Arrays:
        """Return all arrays by name."""
        return dict(
            points=self.points,
            polygons=self.polygons,
            first_polygon=self.first,
            other_masks=self.others.text,
            first_other_mask=self.others.first,
        )


def _hundredths(points: np.ndarray, block: int = 1 << 20) -> np.ndarray:
    found = np.empty(points.shape, np.int32)
    with np.errstate(invalid='ignore', over='ignore'):
        for start in range(0, len(points), block):  # in blocks: intermediate results would be several times the points
            part = points[start : start + block]
            scaled = np.rint(100 * part)
            if not ((np.abs(scaled) < 1 << 31).all() and (scaled / 100 == part).all()):
                return points
            found[start : start + block] = scaled
    return found


@dataclass
class Columns:
    """Images and their objects, which stand image by image.

    Attributes:
        names: Of the files, relative to the image folder.
        ids: int64 [n].
        sizes: int64 [n, 2]: height and width, 0 where unknown.
        first: int64 [n + 1]: the objects of image i are ``first[i]`` to ``first[i + 1] - 1``.
        boxes: float32 [m, 4], x1, y1, x2, y2 in pixels.
        labels: int64 [m], -1: unknown.
        scores: float32 [m].
        crowd: bool [m], regions of many objects.
        masks: None: not kept, or there are none.
        classes: Names of the labels.
        counts: What was found in the annotations, for the log.
    """

    names: Texts
    ids: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray
    masks: Optional[Masks] = None
    classes: Tuple[Any, ...] = ()
    counts: Dict[str, int] = field(default_factory=dict)
    origin: Optional[Tuple[Callable[..., 'Columns'], Tuple[Any, ...]]] = (
        None  # a call that maps the same arrays from a file
    )

    def __reduce__(self) -> Tuple[Any, ...]:
        return self.origin or (Columns.from_arrays, (self.arrays(), self.classes, self.counts))

    @classmethod
    def without_objects(cls, names: Sequence[str]) -> 'Columns':
        """Return images of unknown size without objects, numbered in their order."""
        count = len(names)
        return cls(
            Texts.of(names),
            np.arange(count),
            np.zeros((count, 2), np.int64),
            np.zeros(count + 1, np.int64),
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.int64),
            np.zeros(0, np.float32),
            np.zeros(0, bool),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def arrays(self) -> Arrays:
        """Return all arrays by name; :meth:`from_arrays` takes them back."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        masks = {} if self.masks is None else self.masks.arrays()
        return dict(names=self.names.text, first_name=self.names.first, **plain, **masks)

    @classmethod
    def from_arrays(cls, arrays: Arrays, classes: Sequence[Any], counts: Dict[str, int]) -> 'Columns':
        """Return the columns whose :meth:`arrays` these are."""
        masks = None
        if 'points' in arrays:
            others = Texts(arrays['other_masks'], arrays['first_other_mask'])
            masks = Masks(arrays['points'], arrays['polygons'], arrays['first_polygon'], others)
        plain = {name: arrays[name] for name in _PLAIN}
        names = Texts(arrays['names'], arrays['first_name'])
        return cls(names, masks=masks, classes=tuple(classes), counts=dict(counts), **plain)

    def item(self, index: int, folder: str) -> dict:
        """Return one image as a dict for the pipeline; its arrays are copies."""
        start, stop = self.first[index].item(), self.first[index + 1].item()
        height, width = self.sizes[index].tolist()
        return dict(
            img_path=os.path.join(folder, self.names[index]),
            img_id=self.ids[index].item(),
            height=height or None,
            width=width or None,
            bboxes=np.array(self.boxes[start:stop]),
            labels=np.array(self.labels[start:stop]),
            scores=np.array(self.scores[start:stop]),
            crowd=np.array(self.crowd[start:stop]),
            masks=None if self.masks is None else ObjectMasks(self, range(start, stop)),
        )


class ObjectMasks(Sequence):
    """The segmentations of some objects, each decoded when it is asked for; an object without a mask has its box as a
    polygon."""

    def __init__(self, columns: Columns, objects: Sequence[int]):
        self.columns, self.objects = columns, objects

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int) -> Any:
        number = self.objects[index]
        found = self.columns.masks.get(number)
        if found is None:
            x1, y1, x2, y2 = self.columns.boxes[number].tolist()
            found = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        return found

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __reduce__(self) -> Tuple[type, Tuple[List[Any]]]:
        return list, (list(self),)


def give_memory_back() -> None:
    """Ask the allocator to return what is free to the system; where it can't be asked, nothing happens."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)
