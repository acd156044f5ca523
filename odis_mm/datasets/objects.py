"""Images with objects: COCO-style files, plain folders and lists, ImageNet folders with a file of boxes."""

import copy
import inspect
import os
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS, TRANSFORMS

from ..utils.errors import AnnotationError, BadImageError, ConfigError, MissingFileError
from ..utils.noise import import_quietly
from .annotations import read_annotations, told
from .bad_images import CountsBadImages, check_share
from .columns import Columns
from .draws import seed_of
from .files import first_present, list_images, read_list, shown, without_links
from .image_io import LoadObjectImage, UnsuitedImageError, image_kind, read_image, read_raw
from .segmentation import segmentation_to_mask

__all__ = ['ObjectDataset', 'list_images', 'segmentation_to_mask']

REPLACEMENTS = 10  # tries to find another image for a bad one


@DATASETS.register_module()
class ObjectDataset(CountsBadImages, BaseDataset):
    """Images, each with its objects: boxes, masks if there are any, and labels (for frozen metrics only).

    What it reads follows from `ann_file`:

    - a `.json` in COCO style (`images`, `annotations`): boxes; polygons or RLE where present. `file_name` is relative
      to the image folder, so boxes for ImageNet's folders (`n01440764/x.JPEG`) come the same way;
    - a `.json` dict {path relative to the image folder: [[x1, y1, x2, y2], ...]}: boxes in pixels;
    - any other text file: a list, one path per line, of images without objects;
    - nothing: every image below the image folder, without objects.

    The image folder is `data_root/data_prefix`; `ann_file` is relative to `data_root` too unless absolute.

    Each draw of an image has its own generator, from (seed, epoch, index), so that views depend neither on the number
    of workers nor on their order. The epoch comes with the index (:class:`~odis_mm.datasets.draws.Draw`); a plain index
    gives the views of epoch 0 when it is asked for first, of epoch 1 the second time, and so on.

    What is kept is a few arrays (:class:`~odis_mm.datasets.columns.Columns`), which workers share; those of a large
    json come from a cache, see :func:`~odis_mm.datasets.annotations.read_annotations`.

    A bad image (see `BadImageError`) raises, unless some are allowed by `max_bad_share`: then another image, drawn from
    (seed, epoch, index), takes its place, and `bad_images` names it; `BadImageHook` tells them in the log.

    Args:
        data_prefix: folder of the images, or dict(img_path=folder) as elsewhere in OpenMMLab.
        seed: of the views and of the subset, >= 0.
        data_fraction: share of the images to use, in (0, 1]; a smaller subset of a seed is part of its larger ones.
        with_masks: keep the masks, encoded until a step uses them.
        with_crowd: keep regions of many objects (`iscrowd`).
        keep_empty: keep images without objects; the whole image is their object then.
        min_score: leave out objects whose `score` is lower; one without a score counts as 1.
        max_bad_share: share of the images that may be bad, and of three or more at least one; above it, the next bad
            one raises with the list. 0: the first one raises.
        metainfo, indices, lazy_init: as in mmengine's BaseDataset.

    Raises:
        MissingFileError: a file or folder is missing.
        ConfigError: a file can't be understood or holds nothing to use.
    """

    def __init__(
        self,
        data_root='',
        ann_file='',
        data_prefix='',
        pipeline=(),
        seed: int = 0,
        data_fraction: float = 1.0,
        with_masks: bool = True,
        with_crowd: bool = False,
        keep_empty: bool = True,
        min_score: Optional[float] = None,
        max_bad_share: float = 0.0,
        metainfo=None,
        indices=None,
        lazy_init: bool = False,
        **unknown,
    ):
        if unknown:
            known = [name for name in inspect.signature(ObjectDataset).parameters if name != 'unknown']
            raise ConfigError(
                f'ObjectDataset has no option {", ".join(map(repr, unknown))}; its options are {", ".join(known)}.'
            )
        if not 0 < data_fraction <= 1:
            raise ConfigError(f'data_fraction must be above 0 and at most 1, got {data_fraction}.')
        if not isinstance(seed, int) or seed < 0:
            raise ConfigError(f'seed must be an integer >= 0, got {seed!r}.')
        if not isinstance(data_prefix, dict):
            data_prefix = dict(img_path=os.fspath(data_prefix))
        if set(data_prefix) != {'img_path'}:
            raise ConfigError(f'data_prefix must be a folder or dict(img_path=folder), got {dict(data_prefix)}.')
        self.seed, self.data_fraction = seed, data_fraction
        self.with_masks, self.with_crowd, self.keep_empty = with_masks, with_crowd, keep_empty
        self.min_score = min_score
        self.counts = {}
        self.max_bad_share = check_share(max_bad_share)
        self.columns: Optional[Columns] = None
        self.chosen = np.zeros(0, np.int64)  # images of the columns that are used
        # memory that the loader's workers share: plain indices that were asked for, int32 [images]
        self.draws: Optional[torch.Tensor] = None
        if pipeline:
            import_quietly('mmpretrain.datasets')  # as the registry of transforms does when it is first looked into
        super().__init__(
            ann_file=os.fspath(ann_file),
            data_root=os.fspath(data_root),
            data_prefix=data_prefix,
            # mmengine would look for the transforms in the default scope's registry, whichever that is
            pipeline=[TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline],
            metainfo=metainfo,
            indices=indices,
            lazy_init=lazy_init,
        )

    def __getitem__(self, index: int):
        place = int(index)
        if not 0 <= place < len(self):
            raise IndexError(f'there is no image {place} among {len(self)}.')
        when = seed_of(index)
        if when is None:
            when = int(self.draws[place]), ()
            self.draws[place] += 1
        return self.prepare_data(place, *when)

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __len__(self) -> int:
        self.full_init()
        return len(self.chosen)

    def full_init(self) -> None:
        """Read the annotations, unless it is done."""
        if self._fully_initialized:
            return
        self.columns, self.chosen = self._load()
        self._fully_initialized = True
        if self._indices is not None:
            self.get_subset_(self._indices)
        self._share_memory()

    def _share_memory(self) -> None:
        self.draws = torch.zeros(len(self.chosen), dtype=torch.int32).share_memory_()
        self.start_counting()

    def get_data_info(self, idx: int) -> dict:
        """Return what the annotations tell of an image: img_path, img_id, height, width, bboxes, labels, scores, crowd,
        masks, sample_idx."""
        self.full_init()
        place = idx + len(self.chosen) if idx < 0 else idx
        return {**self.columns.item(self.chosen[place].item(), self.folder), 'sample_idx': place}

    def get_subset_(self, indices: Union[int, Sequence[int]]) -> None:
        """Keep the first ``indices`` images (the last, if negative), or those with these indices."""
        self.full_init()
        if isinstance(indices, int):
            self.chosen = self.chosen[:indices] if indices >= 0 else self.chosen[indices:]
        else:
            self.chosen = self.chosen[np.asarray(indices, np.int64)]
        self._share_memory()

    def get_subset(self, indices: Union[int, Sequence[int]]) -> 'ObjectDataset':
        """Return a data set of some of the images; see :meth:`get_subset_`."""
        self.full_init()
        part = copy.copy(self)
        part.get_subset_(indices)
        return part

    @property
    def folder(self) -> str:
        """Of the images."""
        return self.data_prefix['img_path'] or '.'

    def get_cat_ids(self, idx: int) -> List[int]:
        """Return the labels of an image's objects, for ``ClassBalancedDataset``; an image without any is of the class
        -1."""
        return self.get_data_info(idx)['labels'].tolist() or [-1]

    def prepare_data(self, idx: int, epoch: int = 0, more: Tuple[int, ...] = ()):
        """Return what the pipeline makes of an image, or, if it cannot be read, of another one.

        Args:
            idx: The image.
            epoch: The views follow from it, ``idx`` and the data set's seed.
            more: Further numbers that the views follow from, see :class:`Draw`.

        Raises:
            BadImageError: more images are bad than ``max_bad_share`` allows.
        """
        results = self.get_data_info(idx)
        results['epoch'], results['rng'] = epoch, np.random.default_rng((self.seed, epoch, idx, *more))
        if not self.max_bad_share:
            return self.pipeline(results)
        try:
            return self.pipeline(results)
        except BadImageError as error:
            return self._replaced(idx, epoch, more, error)

    def _replaced(self, idx: int, epoch: int, more: Tuple[int, ...], error: BadImageError):
        """The item of another image; which one depends on nothing but the draw and the files."""
        rng = np.random.default_rng((self.seed, epoch, idx, *more, 1))
        for other in rng.integers(len(self), size=REPLACEMENTS).tolist():
            self.count_bad(idx, error)
            idx, results = other, self.get_data_info(other)
            results['epoch'], results['rng'] = epoch, np.random.default_rng((self.seed, epoch, idx, *more, 1))
            try:
                return self.pipeline(results)
            except BadImageError as next_error:
                error = next_error
        raise BadImageError(f'{REPLACEMENTS + 1} images in a row are bad; the last one: {error}') from None

    def paths_of(self, ids: Sequence[int]) -> List[str]:
        """Return the paths of the images with these `img_id`s ('': none has it), for messages."""
        own = np.asarray(self.columns.ids)[self.chosen]
        found = [np.flatnonzero(own == key) for key in ids]  # plain numbers, as batches carry them
        return [self.get_data_info(int(places[0]))['img_path'] if len(places) else '' for places in found]

    def _load(self) -> Tuple[Columns, np.ndarray]:
        """The columns, and which of their images are used."""
        roots = 'the shipped configs take their roots from COCO_ROOT, IMAGENET_ROOT and ADE20K_ROOT'
        if not os.path.isdir(self.folder):
            raise MissingFileError(
                f'image folder {shown(self.folder)} does not exist; check data_root and data_prefix ({roots}).'
            )
        if self.ann_file and os.path.isdir(self.ann_file):
            raise AnnotationError(
                f'ann_file {shown(self.ann_file)} is a folder; name a .json or a list of images, or leave ann_file out '
                'and name the folder of images by data_root and data_prefix.'
            )
        if self.ann_file and not os.path.isfile(self.ann_file):
            raise MissingFileError(
                f'annotation file {shown(self.ann_file)} does not exist; check data_root and ann_file ({roots}).'
            )
        if not self.ann_file:
            names = without_links(list_images(self.folder), self.folder)
            columns = Columns.without_objects([os.path.relpath(name, self.folder) for name in names])
        elif self.ann_file.lower().endswith('.json'):
            columns = read_annotations(self.ann_file, self.with_masks, self.with_crowd, self.min_score)
            self._metainfo.setdefault('classes', columns.classes)
            self.counts = columns.counts
        else:
            columns = Columns.without_objects(read_list(self.ann_file, self.folder))
        chosen = np.arange(len(columns))
        source = shown(self.ann_file or self.folder)
        if self.counts:
            has_object = np.diff(columns.first) > 0
            if not self.keep_empty:
                chosen = chosen[has_object]
            empty = int((~has_object).sum())
            line = f'{source}: {len(chosen)} images, {told(self.counts)}'
            if empty:
                line += f'; {empty} {"of them" if self.keep_empty else "more left out"} without an object'
            print_log(line, logger='current')
            if not len(chosen):
                raise AnnotationError(
                    f'annotation file {source} has no image with an object; set keep_empty=True to use those without.'
                )
        else:
            print_log(f'{source}: {len(chosen)} images without objects', logger='current')
        first = first_present(columns.names, self.folder, source)
        self._look_at(os.path.join(self.folder, first))
        if self.data_fraction < 1:
            order = np.random.default_rng(self.seed).permutation(len(chosen))
            chosen = chosen[np.sort(order[: max(1, round(self.data_fraction * len(chosen)))])]
        return columns, chosen

    def _look_at(self, path: str) -> None:
        """Tell in the log what kind the first image is, unless it has 8 bits; one that the config does not suit ends
        the run here."""
        load = next((step for step in self.pipeline.transforms if isinstance(step, LoadObjectImage)), None)
        if load is None:
            return
        try:
            read_image(path, load.channels, load.window, load.percentiles)
            raw = read_raw(path, load.channels)
        except UnsuitedImageError as error:
            raise ConfigError(str(error)) from None
        except BadImageError:  # one of those that may be replaced
            return
        if raw.dtype != np.uint8 and load.window is None and load.percentiles is None:
            print_log(
                f'image {shown(path)} has {image_kind(raw)}; each file is scaled by what it uses itself: window=(low, '
                'high) of LoadObjectImage sets one range for all (odis-mm stats proposes one)',
                logger='current',
            )
