"""From an image with objects to a batch of views."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from odis_mm.datasets import EpochSampler, ObjectDataset, read_image, segmentation_to_mask
from odis_mm.datasets.transforms import (
    BlockMasks,
    PackViews,
    PhotometricViews,
    RenderViews,
    SampleViews,
    collate_views,
    photometric,
    render_view,
    single_thread_worker,
)
from odis_mm.datasets.transforms.mim import draw_blocks
from odis_mm.structures import View, box_patch_mask, orient
from odis_mm.visualization import draw_views

GROUPS = [dict(role='global', num=2, size=64, scale=(0.25, 1)), dict(role='local', num=3, size=32, scale=(0.05, 0.25))]


class Recorded(SampleViews):
    """Keeps the tries of each group."""

    def transform(self, results):
        self.drawn = []
        return super().transform(results)

    def draw_crops(self, *args):
        self.drawn.append(SampleViews.draw_crops(*args))
        return self.drawn[-1]


def pixel_cover(results, crops, region):
    """Share of each crop that the target covers, [...], counted slowly."""
    target, (height, width) = results['target'], (results['height'], results['width'])
    if region == 'mask':
        mask = segmentation_to_mask(results['masks'][target], height, width)
    out = np.zeros(crops.shape[:-1])
    for index in np.ndindex(out.shape):
        x, y, w, h = (int(v) for v in crops[index])
        if region == 'mask':
            out[index] = mask[y : y + h, x : x + w].mean()
        else:
            x1, y1, x2, y2 = (float(v) for v in results['bboxes'][target])
            out[index] = max(min(x + w, x2) - max(x, x1), 0.0) * max(min(y + h, y2) - max(y, y1), 0.0) / (w * h)
    return out


def test_each_global_view_can_have_a_cover_of_its_own(synthetic_sample):
    covers = []
    for seed in range(20):
        sample = dict(synthetic_sample(num_objects=2), rng=np.random.default_rng(seed))
        out = SampleViews(GROUPS[:1], patch_size=8, min_cover=(0.1, 0.3), tries=200)(sample)
        if all(out['object_visible']):
            covers.append(pixel_cover(out, np.array([view.crop for view in out['views']]), 'box'))
    assert len(covers) > 5 and (np.array(covers) >= (0.1, 0.3)).all()
    with pytest.raises(ValueError, match='each of the 2 global views'):
        SampleViews(GROUPS, patch_size=8, min_cover=(0.1, 0.1, 0.1))


@pytest.mark.parametrize('region', ['box', 'mask'])
def test_target_is_visible_whenever_a_try_makes_it_so(shared_data, region):
    """Every image of the real set: the accepted crop is the first try that shows what is demanded, judged on pixels."""
    dataset = ObjectDataset(
        data_root=str(shared_data / 'coco'),
        ann_file='annotations/instances_val2017.json',
        data_prefix='val2017',
        pipeline=[],
    )
    step = Recorded(GROUPS, region=region, local_touch=True, target_rule='random', tries=8, local_tries=4)
    seen = {True: 0, False: 0}
    for i in range(len(dataset)):
        results = dict(dataset.get_data_info(i), rng=np.random.default_rng(i))
        if results['height'] is None or not len(results['bboxes']):
            continue
        results = step(results)
        if (
            region == 'mask'
            and not segmentation_to_mask(results['masks'][results['target']], results['height'], results['width']).any()
        ):
            continue
        cover = [row for crops in step.drawn for row in pixel_cover(results, crops, region)]
        tries = [row for crops in step.drawn for row in crops]
        for v, view in enumerate(results['views']):
            good = cover[v] >= 0.04 if v == 0 else cover[v] > 0
            pick = good.argmax() if good.any() else cover[v].argmax()
            assert view.crop == tuple(tries[v][pick]) and results['object_visible'][v] == good.any()
            assert not (v < 2 and good.any()) or results['patch_masks'][v].any()
            seen[bool(good.any())] += 1
    assert seen[True] > 200 and seen[False] > 0


def test_object_aware_finds_a_small_target(synthetic_sample):
    """An object of 1 % in a corner: plain cropping misses it often, object-aware cropping hardly ever in view 2."""
    hits = {}
    for aware in (True, False):
        hits[aware] = []
        for seed in range(100):
            sample = synthetic_sample(seed=seed, num_objects=0)
            sample.update(bboxes=np.array([[0.0, 0, 16, 12]], np.float32), masks=None)
            out = SampleViews(GROUPS, object_aware=aware, patch_size=8)(sample)
            hits[aware].append(out['object_visible'][1])
            assert out['patch_masks'][1].any() == out['object_visible'][1] and all(out['object_visible'][2:])
            assert all(mask.all() for mask in out['patch_masks'][2:])
    assert np.mean(hits[True]) > 0.95 > 0.7 > np.mean(hits[False])


def test_no_object_is_the_whole_image(synthetic_sample):
    for kwargs, count in ((dict(), 0), (dict(target_rule='whole_image'), 3)):
        out = SampleViews(GROUPS, patch_size=8, **kwargs)(synthetic_sample(num_objects=count))
        assert out['target'] == -1 and all(out['object_visible']) and all(m.all() for m in out['patch_masks'])
        assert [m.shape for m in out['patch_masks']] == [(8, 8)] * 2 + [(4, 4)] * 3


@pytest.mark.parametrize('height, width', [(1, 1), (1, 3000), (2000, 3), (7, 900), (33, 20)])
def test_thin_images_end(synthetic_sample, height, width):
    sample = synthetic_sample(height=8, width=8, num_objects=0)
    sample.update(
        img=np.zeros((height, width, 3), np.uint8),
        height=height,
        width=width,
        masks=None,
        bboxes=np.array([[width - 1, height - 1, width, height]], np.float32),
    )
    out = RenderViews()(SampleViews(GROUPS, patch_size=8, local_touch=True)(sample))
    for view in out['views']:
        x, y, w, h = view.crop
        assert 0 <= x and 0 <= y and w >= 1 and h >= 1 and x + w <= width and y + h <= height
    assert [p.shape for p in out['pixels']] == [(64, 64, 3)] * 2 + [(32, 32, 3)] * 3


def test_crops_have_the_drawn_distribution():
    group = dict(role='global', num=1, size=(64, 64), scale=(0.25, 0.5), ratio=(3 / 4, 4 / 3))
    crops = SampleViews.draw_crops(np.random.default_rng(0), group, 20000, 1000, 1000)[0].astype(float)
    share, ratio = crops[:, 2] * crops[:, 3] / 1e6, crops[:, 2] / crops[:, 3]
    assert abs(share.mean() - 0.375) < 0.003 and share.min() > 0.248 and share.max() < 0.502
    assert abs(np.log(ratio).mean()) < 0.005 and abs(np.log(ratio).std() - np.log(4 / 3) / np.sqrt(3)) < 0.003
    middle = (crops[:, 0] + crops[:, 2] / 2).mean()
    assert abs(middle - 500) < 5


def test_target_rules(synthetic_sample):
    boxes = np.array([[0, 0, 10, 10], [0, 0, 30, 10], [0, 0, 60, 10]], np.float32)
    rng, counts = np.random.default_rng(0), {}
    for rule in ('random_area', 'random', 'largest', 'whole_image'):
        step = SampleViews(GROUPS, target_rule=rule, patch_size=8)
        counts[rule] = np.bincount([step.draw_target(rng, boxes) + 1 for _ in range(4000)], minlength=4) / 4000
    assert np.allclose(counts['random_area'], [0, 0.1, 0.3, 0.6], atol=0.03)
    assert np.allclose(counts['random'], [0, 1 / 3, 1 / 3, 1 / 3], atol=0.03)
    assert counts['largest'].tolist() == [0, 0, 0, 1] and counts['whole_image'].tolist() == [1, 0, 0, 0]


def test_region_mask_is_finer_than_box_and_falls_back_to_it(synthetic_sample):
    masks = {}
    for name, change in dict(
        box={},
        mask={},
        none=dict(masks=None),
        empty=dict(masks=[None] * 3),
        no_pixel=dict(masks=[[[1, 1, 1.1, 1, 1.1, 1.1]]] * 3),
    ).items():
        sample = synthetic_sample(seed=3)
        sample.update(change)
        step = SampleViews(GROUPS[:1], region='box' if name == 'box' else 'mask', object_aware=False, patch_size=4)
        masks[name] = np.stack(step(sample)['patch_masks'])
    assert (masks['mask'] <= masks['box']).all() and masks['mask'].sum() < masks['box'].sum()
    assert all((masks[name] == masks['box']).all() for name in ('none', 'empty', 'no_pixel'))


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(views=[dict(role='global', size=60, scale=(0.25, 1))]), 'no multiple of the patch size 8'),
        (dict(views=[dict(role='big', size=64, scale=(0.25, 1))]), "role='big'"),
        (dict(views=[dict(role='local', size=64, scale=(0.25, 1))]), 'at least one global'),
        (dict(views=GROUPS[::-1]), 'before the local'),
        (dict(views=[dict(role='global', size=64, scale=(0.25, 1), crop=3)]), "unknown key \\['crop'\\]"),
        (dict(views=[dict(role='global', size=64, scale=(0.5, 1.5))]), 'scale='),
        (dict(views=[dict(role='global', size=64)]), "lacks \\['scale'\\]"),
        (dict(views=GROUPS, target_rule='biggest'), "target_rule='biggest'"),
        (dict(views=GROUPS, region='circle'), "region='circle'"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        SampleViews(patch_size=8, **change)


def test_rendering_equals_pil_and_turns():
    rng = np.random.default_rng(0)
    img = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for crop in ((0, 0, 120, 90), (7, 11, 60, 33), (5, 5, 10, 12), (3, 2, 1, 1)):
        x, y, w, h = crop
        expected = np.asarray(Image.fromarray(img[y : y + h, x : x + w]).resize((48, 32), Image.BICUBIC)).astype(int)
        upright = render_view(img, View(crop, (32, 48)))
        assert np.abs(upright - expected).max() <= 1
        for flip in (False, True):
            for k in range(4):
                out = render_view(img, View(crop, (32, 48), flip, k))
                assert (out == orient(upright.transpose(2, 0, 1), flip, k).transpose(1, 2, 0)).all()


def test_patch_mask_lies_where_the_object_is_seen(synthetic_sample):
    """A white box on black, rendered: bright patches are exactly those of the patch mask."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y = int(rng.integers(0, 90)), int(rng.integers(0, 90))
        img = np.zeros((128, 128, 3), np.uint8)
        img[y : y + 30, x : x + 30] = 255
        view = View(
            (int(rng.integers(60)), int(rng.integers(60)), 64, 64),
            (64, 64),
            bool(rng.integers(2)),
            int(rng.integers(4)),
        )
        bright = render_view(img, view)[..., 0].reshape(8, 8, 8, 8).max((1, 3)) > 0
        assert (bright == box_patch_mask(np.array([x, y, x + 30, y + 30]), view, 8)).all()


def test_photometrics_against_their_formulas():
    rng = np.random.default_rng(0)
    img = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    real, gray = img.astype(float), img @ np.array([0.299, 0.587, 0.114])
    for name, factor, expected in (
        ('brightness', 1.3, real * 1.3),
        ('contrast', 0.7, gray.mean() + 0.7 * (real - gray.mean())),
        ('saturation', 1.2, 1.2 * real - 0.2 * gray[..., None]),
    ):
        out = getattr(photometric, name)(img, factor)
        assert np.abs(out - np.clip(expected, 0, 255)).max() <= 1.2, name
    assert np.abs(photometric.grayscale(img) - gray[..., None]).max() <= 1
    unturned = np.abs(photometric.hue(img, 0).astype(int) - img)  # 8-bit HSV and back, as PIL does it
    assert unturned.max() <= 10 and unturned.mean() < 1.5
    red = np.full((2, 2, 3), [200, 0, 0], np.uint8)
    assert np.abs(photometric.hue(red, 1 / 3).astype(int) - [0, 200, 0]).max() <= 4
    assert np.abs(photometric.hue(red, -1 / 3).astype(int) - [0, 0, 200]).max() <= 4
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    profile = photometric.blur(point, 1.5).sum(0)[:, 0].astype(float)
    offset = np.arange(41) - 20
    assert abs(np.sqrt((profile * offset**2).sum() / profile.sum()) - 1.5) < 0.15


def test_photometrics_are_drawn_per_image_and_view_with_the_stated_odds():
    step, roles = PhotometricViews(), ['global', 'global', 'local', 'local']
    draws = [step.draw(np.random.default_rng(i), roles) for i in range(4000)]
    rate = {key: np.mean([d[key] for d in draws], 0) for key in ('jitter', 'gray', 'blur', 'solarize')}
    assert np.allclose(rate['jitter'], 0.8, atol=0.03) and np.allclose(rate['gray'], 0.2, atol=0.03)
    assert np.allclose(rate['blur'], [1, 0.1, 0.5, 0.5], atol=0.03)
    assert np.allclose(rate['solarize'], [0, 0.2, 0, 0], atol=0.03)
    sigma = np.stack([d['sigma'] for d in draws])
    assert len(np.unique(sigma)) == sigma.size and sigma.min() >= 0.1 and sigma.max() <= 2
    factors = np.stack([d['factors'] for d in draws])
    assert np.allclose(factors.min((0, 1)), [0.6, 0.6, 0.8, -0.1], atol=0.01)
    assert np.allclose(factors.max((0, 1)), [1.4, 1.4, 1.2, 0.1], atol=0.01)


def test_block_masks(synthetic_sample):
    rng = np.random.default_rng(0)
    for ratio in (0.1, 0.3, 0.5):
        shares = [draw_blocks(rng, 14, 14, ratio, 0.3, 10).mean() for _ in range(200)]
        assert max(shares) <= ratio and np.mean(shares) > 0.8 * ratio
    step, counts = BlockMasks(), []
    for seed in range(500):
        sample = SampleViews(GROUPS, patch_size=8)(synthetic_sample(height=32, width=32, seed=seed, num_objects=0))
        masks = step(sample)['mim_masks']
        assert len(masks) == 2 and all(m.shape == (8, 8) and m.dtype == bool for m in masks)
        counts += [m.mean() for m in masks]
    counts = np.array(counts)
    assert abs((counts == 0).mean() - 0.5) < 0.06 and counts.max() <= 0.5 and counts[counts > 0].mean() > 0.2


def make_batch(synthetic_sample, count=3):
    steps = [SampleViews(GROUPS, patch_size=8), RenderViews(), PhotometricViews(), BlockMasks()]
    samples = [synthetic_sample(seed=seed) for seed in range(count)]
    for step in steps:
        samples = [step(sample) for sample in samples]
    return samples, collate_views([PackViews()(sample) for sample in samples])


def test_batch_is_view_major(synthetic_sample):
    samples, batch = make_batch(synthetic_sample)
    data = batch['data_samples']
    assert [tuple(x.shape) for x in batch['inputs']] == [(6, 3, 64, 64), (9, 3, 32, 32)]
    assert all(x.dtype == torch.uint8 for x in batch['inputs'])
    for b, sample in enumerate(samples):
        for v, view in enumerate(sample['views']):
            r, at = (0, v * 3 + b) if v < 2 else (1, (v - 2) * 3 + b)
            assert (batch['inputs'][r][at].permute(1, 2, 0).numpy() == sample['pixels'][v]).all()
            assert (data['object_mask'][r][at].numpy() == sample['patch_masks'][v].reshape(-1)).all()
            assert tuple(data['crop'][b, v].tolist()) == view.crop and bool(data['flip'][b, v]) == view.flip
            assert data['object_visible'][b, v] == sample['object_visible'][v] and data['rot90'][b, v] == 0
            assert tuple(data['view_size'][b, v].tolist()) == view.size
            if v < 2:
                assert (data['mim_mask'][at].numpy() == sample['mim_masks'][v].reshape(-1)).all()
        assert data['image_size'][b].tolist() == [120, 160] and data['img_id'][b] == b


class Synthetic(torch.utils.data.Dataset):
    """Draws as the sampler hands them out -> packed views."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 7

    def __getitem__(self, draw):
        epoch, index = draw.epoch, int(draw)
        sample = dict(self.make(seed=index), rng=np.random.default_rng((0, epoch, index)))
        for step in (SampleViews(GROUPS, patch_size=8), RenderViews(), PhotometricViews(), BlockMasks(), PackViews()):
            sample = step(sample)
        return sample


def test_picture_of_the_views(synthetic_sample, tmp_path):
    samples, _ = make_batch(synthetic_sample, 1)
    draw_views(samples[0], str(tmp_path / 'views.png'))
    assert np.asarray(Image.open(tmp_path / 'views.png')).std() > 10


def test_views_do_not_depend_on_the_number_of_workers(synthetic_sample):
    batches = {}
    for workers in (0, 1, 2):
        dataset = Synthetic(synthetic_sample)
        sampler = EpochSampler(dataset, seed=5)
        sampler.set_epoch(2)
        loader = DataLoader(
            dataset,
            3,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate_views,
            worker_init_fn=single_thread_worker,
        )
        batches[workers] = list(loader)
    for workers in (1, 2):
        for a, b in zip(batches[0], batches[workers]):
            assert all((x == y).all() for x, y in zip(a['inputs'], b['inputs']))
            assert (a['data_samples']['mim_mask'] == b['data_samples']['mim_mask']).all()


@pytest.mark.parametrize('length, world, batch', [(24, 2, 3), (25, 2, 4), (3, 4, 1), (40, 4, 5)])
def test_sampler_shards_share_global_batches(monkeypatch, length, world, batch):
    def draws(rank, size, epoch):
        monkeypatch.setattr('odis_mm.datasets.samplers.get_dist_info', lambda: (rank, size))
        sampler = EpochSampler(range(length), seed=1)
        sampler.set_epoch(epoch)
        out = list(sampler)
        assert len(out) == len(sampler)
        return out

    alone, ranks = draws(0, 1, 3), [draws(r, world, 3) for r in range(world)]
    assert (
        sorted(alone) == list(range(length)) and {draw.epoch for draw in alone} == {3} and alone != draws(0, 1, 3 + 1)
    )
    drawn = sum(ranks, [])
    assert {len(r) for r in ranks} == {length // world} and len(set(drawn)) == len(drawn) and set(drawn) <= set(alone)
    for k in range(length // (world * batch)):
        together = sum((r[k * batch : (k + 1) * batch] for r in ranks), [])
        assert set(together) == set(alone[k * world * batch : (k + 1) * world * batch])


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match='holds no image'):
        EpochSampler([])


def test_real_image_through_all_steps(shared_data):
    path = sorted((shared_data / 'coco/train2017').glob('*.jpg'))[0]
    img = read_image(path)
    sample = dict(
        img=img,
        height=img.shape[0],
        width=img.shape[1],
        bboxes=np.array([[10, 20, 200, 180]], np.float32),
        masks=None,
        img_id=1,
        rng=np.random.default_rng(0),
    )
    for step in (SampleViews(GROUPS, patch_size=8), RenderViews(), PhotometricViews(), BlockMasks(), PackViews()):
        sample = step(sample)
    assert sample['inputs'][0].float().std() > 5
