"""Geometry: hand-made cases, brute force on pixels, properties, and real COCO objects."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from odis_mm.datasets.objects import segmentation_to_mask
from odis_mm.structures import (
    View,
    ViewBatch,
    box_patch_mask,
    boxes_from_view,
    boxes_to_view,
    mask_area_in_crops,
    mask_patch_mask,
    orient,
    pair_intersections,
    patch_grid,
    points_from_view,
    points_to_view,
    stack_views,
    summed_area,
)


def random_view(rng, width=97, height=71, size=(48, 48)):
    w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
    crop = (int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
    return View(crop, size, bool(rng.integers(2)), int(rng.integers(4)))


def from_pixels(mask, view, patch):
    """Patch mask by repeating pixels until every patch is a whole number of them, then flipping and turning."""
    x, y, w, h = view.crop
    rows, cols = view.size[0] // patch, view.size[1] // patch
    part = np.asarray(mask[y : y + h, x : x + w] != 0)
    part = part.repeat(rows, 0).reshape(rows, h, w).any(1)
    part = part.repeat(cols, 1).reshape(rows, cols, w).any(2)
    return np.rot90(part[:, ::-1] if view.flip else part, view.rot90)


def box_from_pixels(box, view, patch):
    """Patch mask of a box: every pixel of the view that it enters, in fractions; then flipping and turning."""
    axes = []
    for (start, extent), total, low, high in (
        ((view.crop[1], view.crop[3]), view.size[0], box[1], box[3]),
        ((view.crop[0], view.crop[2]), view.size[1], box[0], box[2]),
    ):
        low, high = ((Fraction(float(v)) - start) * total / extent for v in (low, high))
        axes.append(np.array([low < i + 1 and high > i and low < high for i in range(total)]))
    pixels = axes[0][:, None] & axes[1][None, :]
    pixels = np.rot90(pixels[:, ::-1] if view.flip else pixels, view.rot90)
    h, w = pixels.shape
    return pixels.reshape(h // patch, patch, w // patch, patch).any((1, 3))


def test_a_turn_is_counter_clockwise():
    """A picture with a mark near its top right corner: one turn brings it to the top left, as an eye sees it."""
    picture = np.zeros((4, 6), int)
    picture[0, 5] = 1
    assert np.argwhere(orient(picture, rot90=1)).tolist() == [[0, 0]]
    assert np.argwhere(orient(picture, rot90=2)).tolist() == [[3, 0]]
    assert np.argwhere(orient(picture, rot90=3)).tolist() == [[5, 3]]
    view = View((0, 0, 6, 4), (4, 6), rot90=1)
    assert boxes_to_view(np.array([5.0, 0, 6, 1]), view).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    'view, box, expected',
    [
        (View((10, 20, 40, 20), (40, 80)), [20, 25, 30, 30], [20, 10, 40, 20]),
        (View((10, 20, 40, 20), (40, 80), True), [20, 25, 30, 30], [40, 10, 60, 20]),
        (View((10, 20, 40, 20), (40, 80), False, 1), [20, 25, 30, 30], [10, 40, 20, 60]),
        (View((10, 20, 40, 20), (40, 80), True, 3), [20, 25, 30, 30], [20, 40, 30, 60]),
        (View((10, 20, 40, 20), (40, 80), False, 2), [20, 25, 30, 30], [40, 20, 60, 30]),
    ],
)
def test_boxes_by_hand(view, box, expected):
    out = boxes_to_view(np.array(box, np.float32), view)
    assert out.tolist() == expected
    assert boxes_from_view(out, view).tolist() == box


def test_clipping():
    boxes = boxes_to_view(np.array([[0.0, 0, 25, 22], [0, 0, 5, 5]]), View((10, 20, 40, 20), (40, 80), True), clip=True)
    assert boxes[0].tolist() == [50, 0, 80, 4]
    assert (boxes[1, 2] - boxes[1, 0]) * (boxes[1, 3] - boxes[1, 1]) == 0


@pytest.mark.parametrize('size', [(48, 48), (32, 48)])
def test_pixels_and_points_agree(size):
    """A crop that is not resized, flipped and turned as pixels, carries each pixel where the point goes."""
    rng = np.random.default_rng(0)
    image = np.arange(71 * 97).reshape(71, 97)
    for flip in (False, True):
        for k in range(-1, 5):
            x, y = int(rng.integers(40)), int(rng.integers(20))
            view = View((x, y, size[1], size[0]), size, flip, k)
            pixels = orient(image[y : y + size[0], x : x + size[1]], flip, k)
            i, j = int(rng.integers(pixels.shape[0])), int(rng.integers(pixels.shape[1]))
            source = points_from_view(np.array([j + 0.5, i + 0.5]), view)
            assert image[int(source[1]), int(source[0])] == pixels[i, j]
            assert np.allclose(points_to_view(source, view), [j + 0.5, i + 0.5], atol=1e-12)


def test_inverse_and_four_turns():
    rng = np.random.default_rng(1)
    for _ in range(200):
        view = random_view(rng, size=(32, 48))
        points = rng.uniform(-20, 120, (7, 2))
        assert np.allclose(points_from_view(points_to_view(points, view), view), points, atol=1e-9)
    box, size = np.array([3.0, 5, 17, 9]), (20, 30)
    for _ in range(4):
        box, size = boxes_to_view(box, View((0, 0, size[1], size[0]), size, rot90=1)), size[::-1]
    assert box.tolist() == [3, 5, 17, 9] and size == (20, 30)
    maps = rng.random((2, 3, 5, 7))
    assert (orient(orient(orient(orient(maps, rot90=1), rot90=1), rot90=1), rot90=1) == maps).all()


@pytest.mark.parametrize('shape', [(6, 5, 5), (6, 4, 7)])
def test_orient_per_item(shape):
    rng = np.random.default_rng(2)
    flip = rng.random(6) < 0.5
    turns = rng.integers(-4, 8, 6) if shape[1] == shape[2] else rng.integers(0, 4, 6) * 2 + 1
    maps = rng.random(shape)
    for library in (np.asarray, torch.as_tensor):
        out = orient(library(maps), library(flip), library(turns))
        for i in range(6):
            expected = np.rot90(maps[i][:, ::-1] if flip[i] else maps[i], turns[i])
            assert (np.asarray(out[i]) == expected).all()
        assert (np.asarray(orient(out, library(flip), library(turns), inverse=True)) == maps).all()
    stacked = torch.as_tensor(maps)[:, None].expand(-1, 3, -1, -1)  # [B, C, H, W], flags per image
    turned = orient(stacked, torch.as_tensor(flip)[:, None], torch.as_tensor(turns)[:, None])
    assert turned.shape[:2] == (6, 3) and (turned[:, 1].numpy() == np.asarray(out)).all()


def test_orient_needs_square_maps_for_mixed_turns():
    with pytest.raises(ValueError, match='square'):
        orient(np.zeros((2, 3, 4)), np.zeros(2, bool), np.array([0, 1]))


def test_patch_masks_by_hand():
    view = View((0, 0, 64, 64), (64, 64))
    touch = box_patch_mask(np.array([16.0, 16, 32, 32]), view, 16)  # its edges lie on edges of patches
    assert np.argwhere(touch).tolist() == [[1, 1]]
    touch = box_patch_mask(np.array([15.999, 16, 32, 32.001]), view, 16)
    assert np.argwhere(touch).tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert not box_patch_mask(np.array([20.0, 20, 20, 40]), view, 16).any()  # no area
    assert not box_patch_mask(np.array([64.0, 0, 90, 64]), view, 16).any()  # beside the crop
    mask = np.zeros((64, 64), np.uint8)
    mask[31, 48] = 1
    assert np.argwhere(mask_patch_mask(summed_area(mask), view, 16)).tolist() == [[1, 3]]
    # 3 pixels over 2 patches: the middle pixel belongs to both
    table = summed_area(np.array([[0, 1, 0]]))
    assert mask_patch_mask(table, View((0, 0, 3, 1), (16, 32)), 16).tolist() == [[True, True]]


def test_patch_masks_against_pixels():
    rng = np.random.default_rng(3)
    for _ in range(300):
        mask = np.zeros((71, 97), np.uint8)
        y, x = rng.integers(0, 71), rng.integers(0, 97)
        mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = rng.random() < 0.9
        mask[rng.integers(71), rng.integers(97)] = 1
        view = random_view(rng, size=(48, 32))
        assert (mask_patch_mask(summed_area(mask), view, 8) == from_pixels(mask, view, 8)).all()
        corners = rng.uniform(-5, 100, (2, 2)) if rng.random() < 0.5 else rng.integers(-5, 100, (2, 2))
        box = np.sort(corners, 0).reshape(4)
        assert (box_patch_mask(box, view, 8) == box_from_pixels(box, view, 8)).all()


def test_numpy_torch_and_batches_agree():
    rng = np.random.default_rng(4)
    views = [random_view(rng) for _ in range(12)]
    batch = stack_views(views)
    tensors = ViewBatch(*(torch.from_numpy(f) for f in batch))
    boxes = np.sort(rng.uniform(0, 90, (5, 2, 2)), 1).reshape(5, 1, 4)
    mask = rng.random((71, 97)) < 0.01
    table = summed_area(mask)
    assert (summed_area(torch.from_numpy(mask)).numpy() == table).all()
    pairs = (
        (boxes_to_view(boxes, batch, clip=True), boxes_to_view(torch.from_numpy(boxes), tensors, clip=True)),
        (box_patch_mask(boxes, batch, 8), box_patch_mask(torch.from_numpy(boxes), tensors, 8)),
        (mask_patch_mask(table, batch, 8), mask_patch_mask(torch.from_numpy(table), tensors, 8)),
        (pair_intersections(batch)[0], pair_intersections(tensors)[0]),
        (
            mask_area_in_crops(table, batch.crop.astype(int)),
            mask_area_in_crops(torch.from_numpy(table), tensors.crop.long()),
        ),
    )
    for a, b in pairs:
        assert isinstance(b, torch.Tensor) and a.shape == b.shape and (a == b.numpy()).all()
    for i, view in enumerate(views):
        assert (pairs[0][0][:, i] == boxes_to_view(boxes[:, 0], view, clip=True)).all()
        assert (pairs[1][0][:, i] == box_patch_mask(boxes[:, 0], view, 8)).all()
        assert (pairs[2][0][i] == mask_patch_mask(table, view, 8)).all()
        x, y, w, h = view.crop
        assert pairs[4][0][i] == mask[y : y + h, x : x + w].sum()


def test_pair_intersections_against_pixels():
    """Crops that are not resized: the rectangle of a pair, cut out of both views' pixels, holds the same picture."""
    rng = np.random.default_rng(5)
    image = np.arange(60 * 80).reshape(60, 80)
    batches = []
    for _ in range(20):
        views = []
        for _ in range(5):
            x, y = int(rng.integers(80 - 24)), int(rng.integers(60 - 24))
            views.append(View((x, y, 24, 24), (24, 24), bool(rng.integers(2)), int(rng.integers(4))))
        batches.append(stack_views(views))
        pixels = [orient(image[v.crop[1] : v.crop[1] + 24, v.crop[0] : v.crop[0] + 24], v.flip, v.rot90) for v in views]
        first, second, area = pair_intersections(batches[-1])
        assert (first == second.swapaxes(0, 1)).all() and (area == area.T).all()
        for i in range(5):
            for j in range(5):
                cuts = []
                for box, picture in ((first[i, j], pixels[i]), (second[i, j], pixels[j])):
                    x1, y1, x2, y2 = box.astype(int)
                    cuts.append(picture[y1:y2, x1:x2])
                shared = set(pixels[i].ravel()) & set(pixels[j].ravel())
                assert set(cuts[0].ravel()) == set(cuts[1].ravel()) == shared and area[i, j] == len(shared)
    many = ViewBatch(*(np.stack(f) for f in zip(*batches)))  # [20, 5] at once
    assert all((pair_intersections(many)[k][3] == pair_intersections(batches[3])[k]).all() for k in range(3))


def test_bad_views_are_named():
    with pytest.raises(ValueError, match='patch size 16 does not divide'):
        patch_grid(View((0, 0, 9, 9), (40, 48)), 16)
    with pytest.raises(ValueError, match='share one size'):
        patch_grid(stack_views([View((0, 0, 9, 9), (32, 48)), View((0, 0, 9, 9), (32, 48), rot90=1)]), 16)
    with pytest.raises(ValueError, match='integers'):
        mask_patch_mask(summed_area(np.ones((9, 9))), View((0, 0.5, 9, 8), (32, 32)), 16)


def test_thousand_crops_of_coco_objects(shared_data):
    """Boxes and masks of real objects, crops of any size, flips and turns: the patch mask is the one from pixels."""
    rng = np.random.default_rng(6)
    content = json.loads((shared_data / 'coco/annotations/instances_val2017.json').read_text())
    images = {image['id']: image for image in content['images']}
    objects = [a for a in content['annotations'] if not a['iscrowd']]
    touched = 0
    for n in range(1000):
        ann = objects[n % len(objects)]
        height, width = images[ann['image_id']]['height'], images[ann['image_id']]['width']
        view = random_view(rng, width, height, size=[(224, 224), (96, 96)][n % 2])
        x, y, w, h = ann['bbox']
        box = np.array([x, y, x + w, y + h], np.float32)
        mask = segmentation_to_mask(ann['segmentation'], height, width)
        from_box, from_mask = box_patch_mask(box, view, 16), mask_patch_mask(summed_area(mask), view, 16)
        assert (from_box == box_from_pixels(box, view, 16)).all(), (ann['id'], view)
        assert (from_mask == from_pixels(mask, view, 16)).all(), (ann['id'], view)
        touched += from_mask.any()
    assert touched > 300  # the crops do meet their objects
