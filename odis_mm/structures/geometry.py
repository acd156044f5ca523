"""Geometry of views, as plain data and pure functions, for numpy arrays and torch tensors alike.

A view is made from an image in this order: integer or real **crop** -> **resize** -> horizontal **flip** -> **rot90**.

Conventions, stated here once and used everywhere:

* Coordinates are continuous pixels: ``x`` to the right, ``y`` down, pixel ``(row i, column j)`` is the unit square
  ``[j, j + 1] x [i, i + 1]``. Boxes are ``(x1, y1, x2, y2)``, crops ``(x, y, w, h)``, sizes ``(h, w)``.
* ``rot90 = k`` turns the picture **counter-clockwise** by k quarter turns, as one sees it (``numpy.rot90``,
  ``torch.rot90`` on ``(-2, -1)``): one turn brings the right edge to the top, point ``(x, y)`` of a ``w x h`` frame to
  ``(y, w - x)``.
* Leading dimensions broadcast. Results are float64: with integer crops and float32 boxes the numerators that patch
  masks are decided by are exact in it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, List, NamedTuple, Sequence, Tuple, Union

import cv2
import numpy as np
import torch

from ..utils.errors import ConfigError

Array = Any  # np.ndarray or torch.Tensor: the kind that goes in comes out


@dataclass(frozen=True)
class View:
    """One view of an image.

    Attributes:
        crop: ``(x, y, w, h)`` in pixels of the original image.
        size: ``(h, w)`` in pixels after the resize, before the quarter turns (which swap them if odd).
        flip: Mirrored left to right after the resize.
        rot90: Counter-clockwise quarter turns after the flip.
    """

    crop: Tuple[float, float, float, float]
    size: Tuple[int, int]
    flip: bool = False
    rot90: int = 0


class ViewBatch(NamedTuple):
    """Many views as arrays: ``crop`` [..., 4], ``size`` [..., 2], ``flip`` [...], ``rot90`` [...]; fields as in
    :class:`View`."""

    crop: Array
    size: Array
    flip: Array
    rot90: Array

    def at(self, *index) -> 'ViewBatch':
        """Index (slices, None, Ellipsis, numbers) the leading dimensions of all fields."""
        return ViewBatch(
            self.crop[index + (slice(None),)], self.size[index + (slice(None),)], self.flip[index], self.rot90[index]
        )


AnyView = Union[View, ViewBatch]


def stack_views(views) -> ViewBatch:
    """Return a list of V views as numpy arrays: crop float64 [V, 4], size int64 [V, 2], flip bool [V], rot90 int64
    [V]."""
    return ViewBatch(
        np.array([v.crop for v in views], np.float64).reshape(-1, 4),
        np.array([v.size for v in views], np.int64).reshape(-1, 2),
        np.array([v.flip for v in views], bool),
        np.array([v.rot90 for v in views], np.int64),
    )


def _unpack(view: AnyView, *others) -> Tuple[Any, ...]:
    """The array library and float64 x, y, w, h of the crop, W, H of the resized frame, flip, rot90 in it."""
    like: Any = next((a for a in (*others, view.crop) if torch.is_tensor(a)), None)
    xp: Any = np if like is None else torch
    array: Any = np.asarray if like is None else partial(torch.as_tensor, device=like.device)
    real = partial(array, dtype=xp.float64)
    flip, rot90 = array(view.flip, dtype=np.bool_ if like is None else torch.bool), array(view.rot90, dtype=xp.int64)
    crop, size = real(view.crop), real(view.size)
    return (xp, real, *(crop[..., i] for i in range(4)), size[..., 1], size[..., 0], flip, rot90)


def _turn(xp, x, y, w, h, k):
    """Points of a ``w x h`` frame after k counter-clockwise quarter turns; ``w - 1``, ``h - 1`` for pixel indices."""
    k = k % 4
    return (
        xp.where(k == 0, x, xp.where(k == 1, y, xp.where(k == 2, w - x, h - y))),
        xp.where(k == 0, y, xp.where(k == 1, w - x, xp.where(k == 2, h - y, x))),
    )


def _swap_if_odd(xp, a, b, k) -> Tuple[Any, Any]:
    odd = k % 2 == 1
    return xp.where(odd, b, a), xp.where(odd, a, b)


def points_to_view(points: Array, view: AnyView) -> Array:
    """Return points [..., 2] (x, y) of the original image, in pixels of the view; not clipped to it."""
    xp, real, x0, y0, cw, ch, width, height, flip, k = _unpack(view, points)
    points = real(points)
    x, y = (points[..., 0] - x0) * width / cw, (points[..., 1] - y0) * height / ch
    return xp.stack(_turn(xp, xp.where(flip, width - x, x), y, width, height, k), -1)


def points_from_view(points: Array, view: AnyView) -> Array:
    """Return the inverse of :func:`points_to_view`."""
    xp, real, x0, y0, cw, ch, width, height, flip, k = _unpack(view, points)
    points = real(points)
    x, y = _turn(xp, points[..., 0], points[..., 1], *_swap_if_odd(xp, width, height, k), -k)
    x = xp.where(flip, width - x, x)
    return xp.stack([x * cw / width + x0, y * ch / height + y0], -1)


def _through(function, boxes: Array, view: AnyView) -> Array:
    """Boxes through a map of points that keeps the axes parallel to the axes."""
    xp = torch if torch.is_tensor(boxes) or torch.is_tensor(view.crop) else np
    a, b = function(boxes[..., :2], view), function(boxes[..., 2:], view)
    return xp.concatenate([xp.minimum(a, b), xp.maximum(a, b)], -1)


def boxes_to_view(boxes: Array, view: AnyView, clip: bool = False) -> Array:
    """Return boxes [..., 4] of the original image, in pixels of the view.

    Args:
        clip: Cut them to the frame of the view; a box outside of it then has no width or no height.
    """
    out = _through(points_to_view, boxes, view)
    if clip:
        xp, _, *_, width, height, _, k = _unpack(view, boxes)
        w, h = _swap_if_odd(xp, width, height, k)
        limit = xp.stack(xp.broadcast_tensors(w, h, w, h) if xp is torch else np.broadcast_arrays(w, h, w, h), -1)
        out = xp.minimum(xp.maximum(out, xp.zeros_like(limit)), limit)
    return out


def boxes_from_view(boxes: Array, view: AnyView) -> Array:
    """Return the inverse of :func:`boxes_to_view` (without clipping)."""
    return _through(points_from_view, boxes, view)


def patch_grid(view: AnyView, patch: int) -> Tuple[int, int]:
    """Return rows and columns of patches that all views of the batch share, quarter turns included.

    Raises:
        ConfigError: The views differ in size, or the patch side does not divide them.
    """
    sizes = {tuple(s) for s in np.atleast_2d(_numpy(view.size).reshape(-1, 2)).tolist()}
    odd = set((_numpy(view.rot90).reshape(-1) % 2).tolist())
    if len(sizes) != 1 or (len(odd) > 1 and len(set(next(iter(sizes)))) > 1):
        raise ConfigError(f'views of one batch must share one size to share a patch grid, got {sorted(sizes)} (h, w)')
    h, w = next(iter(sizes))
    if h % patch or w % patch:
        raise ConfigError(f'patch size {patch} does not divide the view size {(h, w)}: choose a multiple of it')
    return (w // patch, h // patch) if odd == {1} else (h // patch, w // patch)


def _numpy(a):
    return a.cpu().numpy() if torch.is_tensor(a) else np.asarray(a)


def box_patch_mask(boxes: Array, view: AnyView, patch: int) -> Array:
    """Return which patches of the view the boxes touch with positive area.

    All comparisons are between ``(x - x0) * W`` and ``i * patch * crop_w``, so nothing is rounded for integer crops.

    Args:
        boxes: [..., 4] in pixels of the original image; one of no area touches nothing.
        patch: Side of a patch in pixels of the view.

    Returns:
        bool [..., rows, columns]
    """
    rows, cols = patch_grid(view, patch)
    xp, real, x0, y0, cw, ch, width, height, flip, k = _unpack(view, boxes)
    boxes = real(boxes)
    full_w, full_h = width * cw, height * ch  # the frame, in units of 1 / cw and 1 / ch view pixels
    xa, xb = (boxes[..., 0] - x0) * width, (boxes[..., 2] - x0) * width
    ya, yb = (boxes[..., 1] - y0) * height, (boxes[..., 3] - y0) * height
    xa, xb = xp.where(flip, full_w - xa, xa), xp.where(flip, full_w - xb, xb)
    xa, ya = _turn(xp, xa, ya, full_w, full_h, k)
    xb, yb = _turn(xp, xb, yb, full_w, full_h, k)
    unit_x, unit_y = _swap_if_odd(xp, cw, ch, k)

    def touched(a, b, unit, count):
        edge = real(xp.arange(count + 1)) * patch * unit[..., None]
        low, high = xp.minimum(a, b)[..., None], xp.maximum(a, b)[..., None]
        return (low < edge[..., 1:]) & (high > edge[..., :-1]) & (high > low)

    return touched(ya, yb, unit_y, rows)[..., :, None] & touched(xa, xb, unit_x, cols)[..., None, :]


def summed_area(mask: Array) -> Array:
    """Return the summed-area table int32 [H + 1, W + 1] of a mask [H, W] (nonzero = object)."""
    if not torch.is_tensor(mask):
        return cv2.integral((np.asarray(mask) != 0).astype(np.uint8))
    table = mask.new_zeros([s + 1 for s in mask.shape], dtype=torch.int32)
    table[1:, 1:] = (mask != 0).to(torch.int32).cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)
    return table


def _range_sum(table: Array, top, bottom, left, right):
    return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]


def _whole_crop(view: AnyView):
    """Crop and size as int64 of the array library of the view, or an error."""
    xp = torch if torch.is_tensor(view.crop) else np
    crop, size = (torch.as_tensor(a) if xp is torch else np.asarray(a) for a in (view.crop, view.size))
    if not bool((crop % 1 == 0).all()):
        raise ValueError('masks are counted in whole pixels: the crop must consist of integers')
    whole = (lambda a: a.to(torch.int64)) if xp is torch else (lambda a: a.astype(np.int64))
    return xp, whole(crop), whole(size)


def mask_area_in_crops(table: Array, crops: Array) -> Array:
    """Return the object pixels inside integer crops [..., 4] (x, y, w, h), from the summed-area table of the mask: int
    [...]."""
    height, width = table.shape[0] - 1, table.shape[1] - 1
    x1, y1 = crops[..., 0], crops[..., 1]
    x2, y2 = x1 + crops[..., 2], y1 + crops[..., 3]
    return _range_sum(table, y1.clip(0, height), y2.clip(0, height), x1.clip(0, width), x2.clip(0, width))


def mask_patch_mask(table: Array, view: AnyView, patch: int) -> Array:
    """Return which patches of the view contain some part of a mask, with no resampling.

    A patch is a rectangle of the original image; it belongs to the object iff it overlaps a pixel of the mask with
    positive area. Integer arithmetic from end to end.

    Args:
        table: From :func:`summed_area`, of the mask of the whole original image; outside of it there is no object.
        view: With integer crops.
        patch: Side of a patch in pixels of the view.

    Returns:
        bool [..., rows, columns], leading dimensions of the view batch.
    """
    patch_grid(view, patch)
    xp, crop, size = _whole_crop(view)
    rows, cols = (int(s) // patch for s in size.reshape(-1, 2)[0])
    device = dict(device=crop.device) if xp is torch else {}

    def bounds(start, extent, count, limit):
        # patch i covers start + extent * [i, i + 1] / count: take every pixel that this range enters
        edge = xp.arange(count + 1, **device) * extent[..., None]
        low, high = start[..., None] + edge[..., :-1] // count, start[..., None] - (-edge[..., 1:] // count)
        return low.clip(0, limit), high.clip(0, limit)

    top, bottom = bounds(crop[..., 1], crop[..., 3], rows, table.shape[0] - 1)
    left, right = bounds(crop[..., 0], crop[..., 2], cols, table.shape[1] - 1)
    upright = _range_sum(table, top[..., :, None], bottom[..., :, None], left[..., None, :], right[..., None, :]) > 0
    return orient(upright, view.flip, view.rot90)


def orient(maps: Array, flip: Array = False, rot90: Array = 0, inverse: bool = False) -> Array:
    """Flip, then turn pixels or feature maps [..., H, W]: a permutation of cells, nothing is interpolated.

    Args:
        flip, rot90: Numbers, or arrays that broadcast against the leading dimensions of ``maps`` (for maps with
            channels [B, C, H, W] pass ``flip[:, None]``); turns that differ in parity need square maps.
        inverse: Undo it instead: turn back, then flip.

    Raises:
        ValueError: odd and even turns in one batch of maps that are not square.
    """
    xp: Any = torch if torch.is_tensor(maps) else np
    if np.ndim(_numpy(flip)) == 0 and np.ndim(_numpy(rot90)) == 0:
        mirror = (lambda m: xp.flip(m, (-1,))) if bool(flip) else (lambda m: m)
        turns = int(rot90) % 4
        return mirror(xp.rot90(maps, -turns % 4, (-2, -1))) if inverse else xp.rot90(mirror(maps), turns, (-2, -1))
    array: Any = partial(torch.as_tensor, device=maps.device) if xp is torch else np.asarray
    flip, k = (array(a)[..., None, None] for a in (flip, rot90))
    h, w = maps.shape[-2:]
    odd = bool((k % 2 == 1).any())
    if odd and h != w and not bool((k % 2 == 1).all()):
        raise ValueError(
            f'maps of {h} x {w} cannot be turned by odd and even quarter turns in one batch: use square ones'
        )
    out_h, out_w = (w, h) if odd and h != w else (h, w)
    device = dict(device=maps.device) if xp is torch else {}
    row, col = xp.arange(out_h, **device)[:, None], xp.arange(out_w, **device)[None, :]
    if inverse:  # cell (row, col) of the upright map is where it was brought to
        up_h, up_w = out_h, out_w
        x, y = _turn(xp, xp.where(flip, up_w - 1 - col, col), row, up_w - 1, up_h - 1, k)
    else:  # cell (row, col) of the turned map comes from the cell that a turn back gives
        x, y = _turn(xp, col, row, out_w - 1, out_h - 1, -k)
        x = xp.where(flip, w - 1 - x, x)
    source = y * w + x
    flat = maps.reshape(*maps.shape[:-2], h * w)
    shape = xp.broadcast_shapes(flat.shape[:-1], source.shape[:-2])
    source, flat = (
        xp.broadcast_to(source.reshape(*source.shape[:-2], h * w), (*shape, h * w)),
        xp.broadcast_to(flat, (*shape, h * w)),
    )
    out = torch.gather(flat, -1, source) if xp is torch else np.take_along_axis(flat, source, -1)
    return out.reshape(*shape, out_h, out_w)


def pair_intersections(views: ViewBatch) -> Tuple[Array, Array, Array]:
    """Return what every two views of an image share.

    Args:
        views: Fields with leading dimensions [..., V].

    Returns:
        tuple: ``first``, ``second``: the shared rectangle of views i and j as a box in the pixels of view i and of view
        j [..., V, V, 4] (flipped and turned with it), and ``area`` in square pixels of the original image [..., V, V].
        Where the crops do not overlap all of them are 0.
    """
    xp, real, *_ = _unpack(views)
    crop = real(views.crop)
    a, b = crop[..., :, None, :], crop[..., None, :, :]
    low = xp.maximum(a[..., :2], b[..., :2])
    high = xp.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    side = (high - low).clip(0)
    area = side[..., 0] * side[..., 1]
    boxes = boxes_to_view(xp.concatenate([low, high], -1), views.at(Ellipsis, slice(None), None))
    first = boxes * (area > 0)[..., None]
    return first, xp.swapaxes(first, -2, -3), area


def turn_squares(maps: torch.Tensor, rot90: torch.Tensor) -> torch.Tensor:
    """Do :func:`orient` for square maps with channels, each with turns of its own, without waiting for the device.

    Args:
        maps: [..., C, S, S].
        rot90: int64 [...], counter-clockwise quarter turns of each map, of any sign.
    """
    side = maps.shape[-1]
    cells = torch.arange(side * side, device=maps.device).view(side, side)
    source = torch.stack([orient(cells, rot90=k).flatten() for k in range(4)])[rot90 % 4]  # [..., S * S]
    flat = maps.flatten(-2)
    return flat.gather(-1, source.unsqueeze(-2).expand_as(flat)).view_as(maps)


class ViewPairs(NamedTuple):
    """P pairs of a teacher's view q and a student's view v != q, for B images.

    Attributes:
        teacher: int64 [P], q.
        student: int64 [P], place of v among the views of its resolution.
        teacher_box: float32 [P, B, 4], what both show as a box in pixels of view q, turned with it.
        student_box: float32 [P, B, 4], the same in pixels of view v.
        turns: int64 [P, B], counter-clockwise quarter turns that bring q's orientation to v's: rot90_v - rot90_q.
        overlap: bool [P, B], whether they share any area; the boxes are 0 where not.
    """

    teacher: torch.Tensor
    student: torch.Tensor
    teacher_box: torch.Tensor
    student_box: torch.Tensor
    turns: torch.Tensor
    overlap: torch.Tensor


def teacher_student_pairs(views: ViewBatch, groups: Sequence[int]) -> List[ViewPairs]:
    """Return all pairs of a view of the first group, the teacher's, and another view, for each group of views.

    Args:
        views: Tensors with leading dimensions [B, V].
        groups: Number of views of each resolution, global ones first; they sum to V.

    Returns:
        A list of one :class:`ViewPairs` per group, q-major, with V_r * G pairs (the first: G * (G - 1)).
    """
    teacher_box, student_box, area = pair_intersections(views)  # [B, V, V, ...]
    pairs: List[ViewPairs] = []
    start = 0
    for count in groups:
        others = np.nonzero(~np.eye(groups[0], sum(groups), dtype=bool)[:, start : start + count])
        q, v = (torch.from_numpy(index).to(area.device, non_blocking=True) for index in others)
        at = (slice(None), q, v + start)
        pairs.append(
            ViewPairs(
                q,
                v,
                teacher_box[at].transpose(0, 1).float(),
                student_box[at].transpose(0, 1).float(),
                (views.rot90[:, v + start] - views.rot90[:, q]).T,
                (area[at] > 0).T,
            )
        )
        start += count
    return pairs
