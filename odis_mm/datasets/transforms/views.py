"""Where the views of an image lie, and the views themselves: coordinates first, pixels once.

Crops are drawn, judged and accepted as numbers; pixels are touched only for those that were kept.
"""

from typing import Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from ...structures import View, box_patch_mask, mask_area_in_crops, mask_patch_mask, stack_views, summed_area
from ...utils.errors import ConfigError
from ..image_io import PostponedJPEG
from ..segmentation import mask_of

ATTEMPTS = 10  # draws of a crop's shape until one fits into the image (torchvision's RandomResizedCrop)
_PIL = dict(bicubic=Image.Resampling.BICUBIC, bilinear=Image.Resampling.BILINEAR)
INTERPOLATIONS = tuple(_PIL)
TARGET_RULES = ('random_area', 'random', 'largest', 'score', 'whole_image')
_TURNS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)
_GROUP_KEYS = {'role', 'num', 'size', 'scale', 'ratio', 'flip'}


class BoxRegion:
    """The target as a box (x1, y1, x2, y2) in pixels of the image."""

    def __init__(self, box):
        self.box = np.asarray(box, np.float64)

    def area_in(self, crops: np.ndarray) -> np.ndarray:
        """Return its area in square pixels inside crops [..., 4] (x, y, w, h)."""
        x1, y1, x2, y2 = self.box
        w = np.minimum(crops[..., 0] + crops[..., 2], x2) - np.maximum(crops[..., 0], x1)
        h = np.minimum(crops[..., 1] + crops[..., 3], y2) - np.maximum(crops[..., 1], y1)
        return w.clip(0) * h.clip(0)

    def patch_masks(self, views: Sequence[View], patch: int) -> np.ndarray:
        """Return bool [V, rows, columns] of views of one size."""
        return box_patch_mask(self.box, stack_views(views), patch)


class MaskRegion:
    """The target as a mask bool [H, W] of the image; the same methods as :class:`BoxRegion`."""

    def __init__(self, mask):
        self.table = summed_area(mask)

    def area_in(self, crops):
        return mask_area_in_crops(self.table, crops)

    def patch_masks(self, views, patch):
        return mask_patch_mask(self.table, stack_views(views), patch)


@TRANSFORMS.register_module()
class SampleViews(BaseTransform):
    """Object-aware multi-crop in coordinates (ODIS, arXiv 2506.05409; the 4 % come from a derivative of its code).

    One target object is drawn per image and epoch. Global view 1 is redrawn until the target covers ``min_cover`` of
    the crop, every further global view until it contains some of the target (or covers a ``min_cover`` of its own); the
    first try that succeeds is taken. If none does, the one with the largest cover is kept and the view is marked as not
    showing its object. An image without objects is its own object: nothing is redrawn and the masks are all ones.

    Args:
        views: Groups of views, globals first, each ``dict(role='global' | 'local', num, size, scale, ratio, flip)``:
            ``size`` in pixels (or (h, w)), ``scale`` range of the crop's share of the image area, ``ratio`` range of
            its width / height (log-uniform), ``flip`` probability. All globals have one size.
        target_rule: ``random_area`` (probability proportional to the area of the box), ``random``, ``largest``,
            ``score`` (probability proportional to the object's score), or ``whole_image`` (objects are ignored: iBOT).
        region: ``box``, or ``mask``; an object that has no mask, or one without a single pixel, is taken by its box.
        min_cover: Share of the crop that the target must cover in global view 1, or one share for each global view; a
            view of share 0 has to contain some of it.
        tries: Draws of a global view, the first included.
        local_tries: Draws of a local view if ``local_touch``.
        local_touch: Redraw local views until they touch the target. Local views carry masks of all ones either way;
            without this option nothing is demanded of them, so they count as visible.
        object_aware: False for plain cropping (one draw); masks still show the target, and a global view is visible if
            its crop contains some of it.
        patch_size: Side of a patch in pixels of the view.
        others: So many further objects of the image, drawn at random, get masks in the global views, for
            ``ODIS(lambda_pool)``; the crops are not drawn for them.

    Reads ``height``, ``width``, ``bboxes``, ``masks``, ``scores``, ``rng``; adds ``views`` (list of :class:`View`,
    integer crops), ``patch_masks`` (list of bool [rows, columns]), ``object_visible`` (list of bool), ``view_roles``
    (list of str) and ``target`` (index of the object, -1 for the whole image), and with ``others`` = n ``other_masks``
    (bool [G, n, rows, columns]).

    Raises:
        ConfigError: views, shares or rules that cannot be used; the message names the first.
    """

    def __init__(
        self,
        views: Sequence[dict],
        target_rule: str = 'random_area',
        region: str = 'box',
        min_cover: Union[float, Sequence[float]] = 0.04,
        tries: int = 20,
        local_tries: int = 10,
        local_touch: bool = False,
        object_aware: bool = True,
        patch_size: int = 16,
        others: int = 0,
    ):
        if target_rule not in TARGET_RULES:
            raise ConfigError(f'target_rule={target_rule!r} is unknown: choose one of {TARGET_RULES}')
        if region not in ('box', 'mask'):
            raise ConfigError(f"region={region!r} is unknown: choose 'box' or 'mask'")
        if tries < 1 or local_tries < 1:
            raise ConfigError('tries and local_tries count the first draw too: they must be at least 1')
        self.groups = [self.check_group(group, patch_size) for group in views]
        roles = [group['role'] for group in self.groups]
        if not roles or roles != sorted(roles) or 'global' not in roles:  # 'global' sorts before 'local'
            raise ConfigError('views must list at least one global group, and all global groups before the local ones')
        if len({group['size'] for group in self.groups if group['role'] == 'global'}) > 1:
            raise ConfigError('all global views must have one size: teacher and student compare them patch by patch')
        num_global = sum(group['num'] for group in self.groups if group['role'] == 'global')
        covers = [min_cover] + [0.0] * (num_global - 1) if isinstance(min_cover, (int, float)) else list(min_cover)
        if len(covers) != num_global or not all(0 <= cover < 1 for cover in covers):
            raise ConfigError(
                f'min_cover={min_cover} must be a share from 0 to below 1, or one for each of the {num_global} global '
                'views'
            )
        self.min_cover = np.array(covers)
        self.target_rule, self.region = target_rule, region
        self.tries, self.local_tries, self.local_touch = tries, local_tries, local_touch
        self.object_aware, self.patch_size, self.others = object_aware, patch_size, others

    @staticmethod
    def check_group(group: dict, patch: int) -> dict:
        """Return a group of ``views`` with its defaults filled in.

        Raises:
            ConfigError: an unknown, missing or unsuited entry; the message names it.
        """
        unknown = set(group) - _GROUP_KEYS
        if unknown:
            raise ConfigError(f'unknown key {sorted(unknown)} in a group of views: known are {sorted(_GROUP_KEYS)}')
        missing = {'role', 'size', 'scale'} - set(group)
        if missing:
            raise ConfigError(f'a group of views lacks {sorted(missing)}: {group}')
        group = dict(dict(num=1, ratio=(3 / 4, 4 / 3), flip=0.5), **group)
        size = group['size']
        group['size'] = (size, size) if isinstance(size, int) else tuple(size)
        if group['role'] not in ('global', 'local'):
            raise ConfigError(f"role={group['role']!r} of a group of views is unknown: choose 'global' or 'local'")
        if group['size'][0] % patch or group['size'][1] % patch:
            raise ConfigError(f'view size {group["size"]} is no multiple of the patch size {patch}: change one of them')
        for key in ('scale', 'ratio'):
            low, high = group[key]
            if not 0 < low <= high or (key == 'scale' and high > 1):
                bound = ' <= 1' if key == 'scale' else ''
                raise ConfigError(f'{key}={group[key]} of a group of views must be a range 0 < low <= high{bound}')
        return group

    def draw_target(self, rng: np.random.Generator, boxes: np.ndarray, scores: Optional[np.ndarray] = None) -> int:
        """Return the index of the target, -1 for the whole image."""
        if self.target_rule == 'whole_image' or len(boxes) == 0:
            return -1
        if self.target_rule == 'random':
            return int(rng.integers(len(boxes)))
        if self.target_rule == 'score':
            weight = np.ones(len(boxes)) if scores is None else np.maximum(scores, 1e-6, dtype=np.float64)
        else:
            weight = (boxes[:, 2] - boxes[:, 0]).astype(np.float64) * (boxes[:, 3] - boxes[:, 1])
        if self.target_rule == 'largest':
            return int(weight.argmax())
        total = np.cumsum(weight)
        return min(int(np.searchsorted(total, rng.random() * total[-1], side='right')), len(boxes) - 1)

    def _region(self, results: dict, target: int) -> Union[BoxRegion, MaskRegion]:
        if self.region == 'mask' and results.get('masks') is not None and results['masks'][target]:
            mask = mask_of(results, target)
            if mask.any():
                return MaskRegion(mask)
        return BoxRegion(results['bboxes'][target])

    @staticmethod
    def draw_crops(rng: np.random.Generator, group: dict, tries: int, height: int, width: int) -> np.ndarray:
        """Return all tries of all views of a group at once: int64 [num, tries, 4] (x, y, w, h).

        Where none of the drawn shapes fits (thin images), the largest crop that keeps the range of ratios is taken, as
        in torchvision, but at a random place, so that the tries differ.
        """
        (low, high), (flat, wide) = group['scale'], np.log(group['ratio'])
        u = rng.random((group['num'], tries, ATTEMPTS, 2))
        side = np.sqrt((low + (high - low) * u[..., 0]) * (height * width))
        stretch = np.exp((flat + (wide - flat) * u[..., 1]) / 2)  # w = sqrt(area ratio), h = sqrt(area / ratio)
        w, h = np.maximum(np.rint(side * stretch), 1), np.maximum(np.rint(side / stretch), 1)
        fits = (w <= width) & (h <= height)
        first = fits.argmax(-1)[..., None]
        w, h = np.take_along_axis(w, first, -1)[..., 0], np.take_along_axis(h, first, -1)[..., 0]
        lost = ~fits.any(-1)
        if lost.any():
            ratio = min(max(width / height, group['ratio'][0]), group['ratio'][1])
            w[lost] = max(min(width, round(height * ratio)), 1)
            h[lost] = max(min(height, round(width / ratio)), 1)
        place = rng.random((group['num'], tries, 2))
        x, y = np.floor(place[..., 0] * (width - w + 1)), np.floor(place[..., 1] * (height - h + 1))
        return np.stack([x, y, w, h], -1).astype(np.int64)

    def _accept(self, crops: np.ndarray, region, role: str, first: int) -> Tuple[np.ndarray, np.ndarray]:
        """Of each view's tries [num, tries, 4] the accepted crop [num, 4], and whether it will do [num].

        The views are numbers ``first``, ``first + 1``, ... of the image.
        """
        demanding = role == 'global' or self.local_touch
        if region is None or not demanding:
            return crops[:, 0], np.ones(len(crops), bool)
        area = region.area_in(crops)
        cover = area / (crops[..., 2] * crops[..., 3])
        good = area > 0  # a crop that holds some of the target holds some patch of it: patches tile the crop
        if role == 'global' and self.object_aware:
            good &= cover >= self.min_cover[first : first + len(crops), None]
        each, good_any = np.arange(len(crops)), good.any(1)
        pick = np.where(good_any, good.argmax(1), cover.argmax(1))
        return crops[each, pick], good_any

    def transform(self, results: dict) -> dict:
        rng, height, width = results['rng'], results['height'], results['width']
        target = self.draw_target(rng, results['bboxes'], results.get('scores'))
        region = None if target < 0 else self._region(results, target)
        views, masks, visible, roles = [], [], [], []
        for group in self.groups:
            local = group['role'] == 'local'
            tries = 1
            if region is not None and self.object_aware and (not local or self.local_touch):
                tries = self.local_tries if local else self.tries
            crops = self.draw_crops(rng, group, tries, height, width)
            crops, seen = self._accept(crops, region, group['role'], first=len(views))
            flips = rng.random(group['num']) < group['flip']
            new = [View(tuple(c), group['size'], f) for c, f in zip(crops.tolist(), flips.tolist())]
            if local or region is None:
                grid = tuple(s // self.patch_size for s in group['size'])
                masks += [np.ones(grid, bool) for _ in new]
            else:
                masks += list(region.patch_masks(new, self.patch_size))
            views, visible, roles = views + new, visible + seen.tolist(), roles + [group['role']] * len(new)
        results.update(views=views, patch_masks=masks, object_visible=visible, view_roles=roles, target=target)
        if self.others:
            results['other_masks'] = self._other_masks(results, views[: roles.count('global')], target)
        return results

    def _other_masks(self, results: dict, views: Sequence[View], target: int) -> np.ndarray:
        """Patches of objects other than the target, bool [G, others, rows, columns]; all False where there is no such
        object."""
        boxes = np.asarray(results['bboxes'], np.float64)
        rest = np.delete(np.arange(len(boxes)), target) if target >= 0 else np.zeros(0, int)
        chosen = results['rng'].permutation(rest)[: self.others]
        rows, columns = (side // self.patch_size for side in views[0].size)
        masks = np.zeros((len(views), self.others, rows, columns), bool)
        for place, index in enumerate(chosen.tolist()):
            masks[:, place] = self._region(results, index).patch_masks(views, self.patch_size)
        return masks


def render_view(img: np.ndarray, view: View, interpolation: str = 'bicubic') -> np.ndarray:
    """Return the pixels of a view with an integer crop: uint8 [h, w, C] of an image uint8 [H, W, C].

    Resized by torch's antialiased kernels on uint8: PIL's to within one grey level in most views. Of photographs 0.02 %
    of the values differ by more, up to 15, as torch rounds the kernels' weights to fewer bits.
    """
    x, y, w, h = view.crop
    # [1, h, w, 3] in one piece, seen as channels last: any other layout of strides costs three times as much
    part = torch.from_numpy(np.ascontiguousarray(img[None, y : y + h, x : x + w])).permute(0, 3, 1, 2)
    pixels = F.interpolate(part, size=view.size, mode=interpolation, antialias=True)[0].permute(1, 2, 0).numpy()
    return _turned(pixels, view)


def _turned(pixels: np.ndarray, view: View) -> np.ndarray:
    channels = pixels.shape[2]
    if view.flip:
        pixels = cv2.flip(pixels, 1)
    if view.rot90 % 4 and channels <= 4:
        pixels = cv2.rotate(pixels, _TURNS[view.rot90 % 4])
    elif view.rot90 % 4:  # OpenCV turns no more channels
        pixels = np.ascontiguousarray(np.rot90(pixels, view.rot90))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def reduction(views: Sequence[View]) -> int:
    """Return the largest of 8, 4, 2 and 1 by which an image can be made smaller while each crop keeps as many rows and
    columns as its view."""
    least = min(side / pixels for view in views for side, pixels in zip(view.crop[2:], view.size[::-1]))
    return next((factor for factor in (8, 4, 2) if factor <= least), 1)


def render_reduced(img: Image.Image, factor: int, view: View, interpolation: str = 'bicubic') -> np.ndarray:
    """Do as :func:`render_view`, of an image that is smaller by ``factor``; the crop's corners are between its
    pixels."""
    x, y, w, h = view.crop
    box = (x / factor, y / factor, (x + w) / factor, (y + h) / factor)
    return _turned(np.asarray(img.resize(view.size[::-1], _PIL[interpolation], box)), view)


@TRANSFORMS.register_module()
class RenderViews(BaseTransform):
    """Crop, resize, flip and turn: ``img`` and ``views`` -> ``pixels``, a list of uint8 [h, w, 3]; ``img`` is kept.

    A :class:`PostponedJPEG` is decoded here, see ``LoadObjectImage(reduced=True)``.

    Args:
        interpolation: 'bicubic' (DINO, iBOT) or 'bilinear' (GTSA), both antialiased.

    Raises:
        ConfigError: another interpolation.
    """

    def __init__(self, interpolation: str = 'bicubic'):
        if interpolation not in INTERPOLATIONS:
            raise ConfigError(f'interpolation={interpolation!r} is unknown: choose one of {INTERPOLATIONS}')
        self.interpolation = interpolation

    def transform(self, results: dict) -> dict:
        img, views = results['img'], results['views']
        factor = 1
        if isinstance(img, PostponedJPEG):
            factor = reduction(views)
            img = img.decode(factor)
        if factor > 1:
            small = Image.fromarray(img)
            results['pixels'] = [render_reduced(small, factor, view, self.interpolation) for view in views]
        else:
            results['pixels'] = [render_view(img, view, self.interpolation) for view in views]
        return results
