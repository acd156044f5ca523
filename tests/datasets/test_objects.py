"""ObjectDataset and the reading of images: every form of input, real data, each kind of bad input with its message."""

import json
import pickle
import re

import cv2
import numpy as np
import pytest
from mmpretrain.registry import DATASETS, TRANSFORMS
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

from odis_mm.datasets import Draw, objects
from odis_mm.datasets.image_io import LoadObjectImage, read_image
from odis_mm.datasets.objects import ObjectDataset, segmentation_to_mask

LOAD = [dict(type='LoadObjectImage')]


def _image(path, height=40, width=60, seed=0, **options):
    rng = np.random.default_rng(seed)
    pixels = cv2.resize(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), (width, height))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def folder(tmp_path):
    for name in ('a/1.jpg', 'b/2.JPEG', 'b/c/3.png'):
        _image(tmp_path / 'img' / name)
    (tmp_path / 'img' / 'notes.txt').write_text('no image')
    (tmp_path / 'img' / '._1.jpg').write_text('no image either')
    return tmp_path


def _coco(folder, annotations, **changes):
    content = dict(
        images=[dict(id=key, file_name=name, height=40, width=60) for key, name in ((7, 'a/1.jpg'), (5, 'b/2.JPEG'))],
        annotations=annotations,
        categories=[dict(id=9, name='nine'), dict(id=4, name='four')],
    )
    content.update(changes)
    (folder / 'ann.json').write_text(json.dumps(content))
    return dict(data_root=folder, ann_file='ann.json', data_prefix='img')


def _ann(bbox, image_id=7, category_id=4, **more):
    return dict(image_id=image_id, category_id=category_id, bbox=bbox, **more)


def _message(error, call, *args, **kwargs) -> str:
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# ---- forms of input


def test_coco_boxes_labels_and_counts(folder, caplog):
    anns = [
        _ann([50, 10, 20, 5], category_id=9),  # out to the right: clipped
        _ann([1.5, 2, 10, 20.25], image_id=5),
        _ann([5, 5, 6, 6], iscrowd=1),
        _ann([5, 5, -3, 6]),
        _ann([5, 5, 6, 0.5]),
        _ann([float('nan'), 5, 6, 6]),  # inverted, thin, no number
        _ann([70, 5, 6, 6]),
        _ann([-8, 5, 8.5, 6]),  # outside; half a pixel inside
        _ann([1, 1, 5, 5], image_id=99),
        _ann([0, 0, 60.2, 40], category_id=77),
    ]
    dataset = ObjectDataset(**_coco(folder, anns))
    assert len(dataset) == 2 and dataset.metainfo['classes'] == ('four', 'nine')
    first, second = dataset.get_data_info(0), dataset.get_data_info(1)
    assert (first['img_id'], first['height'], first['width'], first['masks']) == (7, 40, 60, None)
    assert first['img_path'] == str(folder / 'img' / 'a/1.jpg')
    np.testing.assert_array_equal(first['bboxes'], np.float32([[50, 10, 60, 15], [0, 0, 60, 40]]))
    np.testing.assert_array_equal(second['bboxes'], np.float32([[1.5, 2, 11.5, 22.25]]))
    assert first['labels'].tolist() == [1, -1] and second['labels'].tolist() == [0]
    assert first['bboxes'].dtype == np.float32 and first['labels'].dtype == np.int64
    assert dataset.counts == {
        'objects': 3,
        'annotations of unknown images dropped': 1,
        'crowd regions left out': 1,
        'degenerate or inverted boxes dropped': 3,
        'boxes outside their image dropped': 2,
        'boxes clipped to their image': 1,
    }
    crowd = ObjectDataset(**_coco(folder, anns), with_crowd=True)
    assert crowd.counts['objects'] == 4 and len(crowd.get_data_info(0)['bboxes']) == 3


def test_log_line_tells_the_counts(folder, monkeypatch):
    lines = []
    monkeypatch.setattr(objects, 'print_log', lambda line, **_: lines.append(line))
    ObjectDataset(**_coco(folder, [_ann([5, 5, 6, 6]), _ann([5, 5, -3, 6])]))
    assert lines == [
        f'{folder}/ann.json: 2 images, 1 objects, 1 degenerate or inverted boxes dropped; 1 of them without an object'
    ]


def test_masks_and_objects_without_one(folder):
    polygon = [[10, 5, 20, 5, 20, 15, 10, 15]]
    rle = coco_mask.encode(np.asfortranarray(np.eye(40, 60, dtype=np.uint8)))
    rle = dict(size=rle['size'], counts=rle['counts'].decode())
    anns = [
        _ann([10, 5, 10, 10], segmentation=polygon),
        _ann([0, 0, 40, 40], segmentation=rle),
        _ann([1, 2, 3, 4]),
        _ann([1, 2, 3, 4], segmentation=[[1, 2]]),
    ]
    options = _coco(folder, anns)
    dataset = ObjectDataset(**options)
    box = [[1, 2, 4, 2, 4, 6, 1, 6]]
    assert dataset.get_data_info(0)['masks'] == [polygon, rle, box, box] and dataset.get_data_info(1)['masks'] == []
    assert dataset.counts['objects without a mask, taken as their box'] == 2
    assert ObjectDataset(**options, with_masks=False).get_data_info(0)['masks'] is None


def test_images_without_objects(folder):
    options = _coco(folder, [_ann([5, 5, 6, 6])])
    assert [len(ObjectDataset(**options).get_data_info(i)['bboxes']) for i in range(2)] == [1, 0]
    assert len(ObjectDataset(**options, keep_empty=False)) == 1


def test_plain_folder_and_list(folder):
    dataset = ObjectDataset(folder / 'img', pipeline=LOAD)
    assert [info['img_path'] for info in map(dataset.get_data_info, range(3))] == [
        str(folder / 'img' / name) for name in ('a/1.jpg', 'b/2.JPEG', 'b/c/3.png')
    ]
    item = dataset[1]
    assert item['img'].shape == (40, 60, 3) and item['bboxes'].shape == (0, 4) and item['masks'] is None
    assert (item['height'], item['width']) == (40, 60)
    (folder / 'some.txt').write_text('b/c/3.png\n\na/1.jpg\n')
    dataset = ObjectDataset(data_root=folder, ann_file='some.txt', data_prefix=dict(img_path='img'), pipeline=LOAD)
    assert [item['img_path'][-5:] for item in dataset] == ['3.png', '1.jpg']


def test_relative_folder_is_not_joined_twice(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(list(ObjectDataset('img', pipeline=LOAD))) == 3
    monkeypatch.chdir(folder / 'img')
    assert len(list(ObjectDataset(pipeline=LOAD))) == 3


def test_dict_of_boxes_is_clipped_when_the_size_is_known(folder):
    boxes = {'b/2.JPEG': [[-5, 1, 10, 20], [70, 1, 80, 9], [50, 30, 90, 90]], 'a/1.jpg': []}
    (folder / 'boxes.json').write_text(json.dumps(boxes))
    dataset = ObjectDataset(folder, 'boxes.json', 'img', pipeline=LOAD)
    info = dataset.get_data_info(0)
    assert info['height'] is None and info['bboxes'].shape == (3, 4) and info['labels'].tolist() == [-1] * 3
    np.testing.assert_array_equal(dataset[0]['bboxes'], np.float32([[0, 1, 10, 20], [50, 30, 60, 40]]))
    assert dataset[0]['labels'].shape == (2,) and dataset[1]['bboxes'].shape == (0, 4)


def test_registered(folder):
    dataset = DATASETS.build(dict(type='ObjectDataset', data_root=str(folder / 'img'), pipeline=LOAD))
    assert isinstance(dataset, ObjectDataset) and isinstance(TRANSFORMS.build(LOAD[0]), LoadObjectImage)


# ---- draws


def _draw(results):
    return results['epoch'], results['sample_idx'], results['rng'].integers(1 << 40)


def test_draws_do_not_depend_on_the_workers(folder):
    dataset = ObjectDataset(folder / 'img', pipeline=[_draw], seed=5)
    draws = [Draw(i, epoch) for i, epoch in ((2, 1), (0, 0), (2, 0), (1, 1), (0, 1), (2, 2), (1, 0))]
    expected = [(d.epoch, d, np.random.default_rng((5, d.epoch, d)).integers(1 << 40)) for d in draws]
    assert [dataset[d] for d in draws] == expected
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=2, sampler=draws, num_workers=workers, collate_fn=list)
        assert sum(loader, []) == expected
    other = ObjectDataset(folder / 'img', pipeline=[_draw], seed=6)
    assert other[draws[0]][:2] == (1, 2) and other[draws[0]] != dataset[draws[0]]
    assert len(list(dataset)) == 3


def test_data_fraction_is_a_nested_subset_by_seed(tmp_path):
    names = [f'{i:03d}.jpg' for i in range(200)]
    (tmp_path / 'list.txt').write_text('\n'.join(names))
    (tmp_path / names[0]).write_bytes(b'')
    for name in names:
        (tmp_path / name).touch()

    def subset(fraction, seed=0):
        dataset = ObjectDataset(tmp_path, 'list.txt', seed=seed, data_fraction=fraction)
        return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]

    small, large = subset(0.1), subset(0.3)
    assert len(small) == 20 and len(large) == 60 and set(small) < set(large) and small == sorted(small)
    assert subset(0.1) == small != subset(0.1, seed=1)
    assert len(subset(0.001)) == 1 and len(subset(1.0)) == 200


def test_large_file(folder):
    """Anything quadratic in it would take minutes; COCO train2017 has 11 times as many."""
    rng = np.random.default_rng(0)
    count = 10_000
    images = [dict(id=i, file_name='a/1.jpg', height=480, width=640) for i in range(count)]
    anns = [
        dict(image_id=int(i), category_id=1, bbox=[10.5, 20, 50, 60], iscrowd=0, segmentation=[[1.5] * 40])
        for i in rng.integers(0, count, 8 * count)
    ]
    options = _coco(folder, anns, images=images)
    dataset = ObjectDataset(**options)
    counts = np.bincount([ann['image_id'] for ann in anns], minlength=count)
    assert [len(dataset.get_data_info(i)['labels']) for i in range(0, count, 97)] == counts[::97].tolist()


def test_serialised_between_workers(folder):
    dataset = ObjectDataset(folder / 'img')
    assert pickle.loads(pickle.dumps(dataset)).get_data_info(2)['img_path'].endswith('3.png')


# ---- real data


def test_real_coco_equals_pycocotools(shared_data):
    root = shared_data / 'coco'
    dataset = ObjectDataset(root, 'annotations/instances_train2017.json', 'train2017', pipeline=LOAD)
    coco = COCO(root / 'annotations/instances_train2017.json')
    assert len(dataset) == len(coco.imgs) and dataset.counts['crowd regions left out'] == 25
    assert dataset.metainfo['classes'] == tuple(cat['name'] for cat in coco.loadCats(sorted(coco.cats)))
    checked = 0
    for index in range(0, len(dataset), 5):
        info = dataset.get_data_info(index)
        anns = coco.loadAnns(coco.getAnnIds(info['img_id'], iscrowd=False))
        assert len(anns) == len(info['bboxes']) == len(info['masks'])
        expected = np.array([ann['bbox'] for ann in anns]).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        np.testing.assert_allclose(info['bboxes'], expected, atol=1)
        for ann, segm, label in zip(anns, info['masks'], info['labels']):
            mask = segmentation_to_mask(segm, info['height'], info['width'])
            assert mask.dtype == bool
            np.testing.assert_array_equal(mask, coco.annToMask(ann))
            assert sorted(coco.cats)[label] == ann['category_id']
            assert abs(mask.sum() - ann['area']) <= 0.15 * ann['area'] + 30  # the area of the polygon, not of pixels
            checked += 1
    assert checked > 300
    item = dataset[3]
    assert item['img'].shape == (item['height'], item['width'], 3)


def test_real_images_equal_pillow(shared_data):
    paths = sorted((shared_data / 'coco' / 'val2017').glob('*.jpg'))[:10]
    folder = shared_data / 'imagenette' / 'train'
    grey = [path for path in sorted(folder.rglob('*.jpg')) if Image.open(path).mode == 'L']
    assert grey
    for path in paths + grey[:3]:
        ours, theirs = read_image(path), np.asarray(Image.open(path).convert('RGB'))
        assert ours.shape == theirs.shape and ours.dtype == np.uint8
        assert np.abs(ours.astype(int) - theirs).mean() < 1  # two JPEG decoders


def test_real_imagenet_folders_and_box_file(shared_data):
    assert len(ObjectDataset(shared_data / 'imagenette' / 'train')) == 1000
    boxes = ObjectDataset(shared_data / 'coco_boxes_256', 'annotations/boxes_val.json', 'images', pipeline=LOAD)
    assert len(boxes) == 200 and boxes.counts['objects'] == 1728 and boxes[0]['masks'] is None


# ---- masks


def test_rle_masks():
    mask = np.zeros((30, 50), bool)
    mask[5:20, 10:45] = np.random.default_rng(0).random((15, 35)) > 0.3
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.ravel(order='F').astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    text = compressed['counts'].decode()
    for segm in (compressed, dict(size=[30, 50], counts=text), dict(size=[30, 50], counts=counts)):
        np.testing.assert_array_equal(segmentation_to_mask(segm, 30, 50), mask)
    assert _message(ValueError, segmentation_to_mask, compressed, 50, 30) == (
        'an RLE mask of size [30, 50] does not fit an image of height 50 and width 30; use the images that the masks '
        'were made on.'
    )


def test_several_polygons_are_one_object():
    mask = segmentation_to_mask([[2, 2, 8, 2, 8, 8, 2, 8], [12, 2, 18, 2, 18, 8, 12, 8]], 10, 20)
    assert mask.shape == (10, 20) and mask[4, 4] and mask[4, 14] and not mask[4, 10] and mask.sum() == 72


# ---- bad images


def test_kinds_of_images_become_rgb(tmp_path):
    colour = _image(tmp_path / 'c.png')
    np.testing.assert_array_equal(read_image(tmp_path / 'c.png'), colour)
    grey = Image.fromarray(colour[..., 0])
    grey.save(tmp_path / 'g.png')
    np.testing.assert_array_equal(read_image(str(tmp_path / 'g.png')), np.repeat(colour[..., :1], 3, 2))
    Image.fromarray(colour).convert('RGBA').save(tmp_path / 'alpha.png')
    np.testing.assert_array_equal(read_image(tmp_path / 'alpha.png'), colour)
    Image.fromarray(colour[..., 0].astype(np.uint16) * 257).save(tmp_path / 'deep.png')
    np.testing.assert_array_equal(read_image(tmp_path / 'deep.png'), np.repeat(colour[..., :1], 3, 2))


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    _image(tmp_path / 'x.jpg', exif=exif)
    assert read_image(tmp_path / 'x.jpg').shape == (40, 60, 3)
    results = dict(img_path=str(tmp_path / 'x.jpg'), height=60, width=40)
    assert _message(ValueError, LoadObjectImage(), results) == (
        f'image {tmp_path}/x.jpg is 60 x 40 pixels but its annotation says 40 x 60 (an EXIF orientation is not applied'
        ': store the pixels upright); use the images that the boxes were made on.'
    )


@pytest.mark.parametrize('options', [dict(), dict(progressive=True), dict(quality=100, subsampling=0)])
@pytest.mark.parametrize('share', [0.15, 0.5, 0.99])
def test_truncated_jpeg(tmp_path, options, share):
    path = tmp_path / 'x.jpg'
    _image(path, 200, 300, **options)
    whole = path.read_bytes()
    read_image(path)
    path.write_bytes(whole + b'\0' * 100)  # padding after the end marker is harmless
    read_image(path)
    part = whole[: int(share * len(whole))]
    path.write_bytes(part)
    assert _message(ValueError, read_image, path) == (
        f'image {path} is a truncated JPEG ({len(part)} bytes, no end marker); fetch it again or remove it from the '
        'data.'
    )


def test_preview_in_the_head_does_not_hide_a_truncation(tmp_path):
    _image(tmp_path / 'small.jpg', 16, 16)
    _image(tmp_path / 'x.jpg', 200, 300)
    preview, whole = (tmp_path / 'small.jpg').read_bytes(), (tmp_path / 'x.jpg').read_bytes()
    segment = b'\xff\xe1' + (len(preview) + 2).to_bytes(2, 'big') + preview
    whole = whole[:2] + segment + whole[2:]
    (tmp_path / 'x.jpg').write_bytes(whole)
    assert read_image(tmp_path / 'x.jpg').shape == (200, 300, 3)
    (tmp_path / 'x.jpg').write_bytes(whole[:-300])
    assert 'is a truncated JPEG' in _message(ValueError, read_image, tmp_path / 'x.jpg')


def test_bad_image_files(tmp_path):
    path = tmp_path / 'x.png'
    assert _message(FileNotFoundError, read_image, path) == (
        f'image {path} does not exist; check data_root and data_prefix, or remove it from the annotations or the list.'
    )
    path.write_bytes(b'')
    assert _message(ValueError, read_image, path) == (
        f'image {path} is empty (0 bytes); fetch it again or remove it from the data.'
    )
    damaged = f'image {path} cannot be decoded: it is damaged or no image; fetch it again or remove it from the data.'
    path.write_bytes(b'<html>not found</html>')
    assert _message(ValueError, read_image, path) == damaged.replace('damaged or no image', 'a web page')
    _image(path)
    path.write_bytes(path.read_bytes()[:200])
    assert _message(ValueError, read_image, path) == damaged
    assert _message(OSError, read_image, tmp_path) == (
        f'image {tmp_path} could not be read (Is a directory); check the file and its permissions.'
    )


def test_mutated_jpegs_never_crash(tmp_path):
    path, rng = tmp_path / 'x.jpg', np.random.default_rng(0)
    _image(path, 64, 80)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(300):
        data = whole.copy()
        data[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
        path.write_bytes(data.tobytes()[: rng.integers(1, len(data) + 200)])
        try:
            assert read_image(path).ndim == 3
        except ValueError as error:
            assert str(error).startswith(f'image {path} ')
            refused += 1
    assert refused > 50


def test_bad_image_raises_in_the_dataset(folder):
    (folder / 'img' / 'b' / '2.JPEG').write_bytes(b'nothing')
    dataset = ObjectDataset(folder / 'img', pipeline=LOAD)
    assert f'image {folder}/img/b/2.JPEG cannot be decoded' in _message(ValueError, dataset.__getitem__, 1)
    assert dataset[0]['img'].shape == (40, 60, 3)


# ---- bad annotations

_BAD_ANNOTATION = ' is not a dict with an image_id, a category_id and a bbox [x, y, width, height]; fix or remove it.'


@pytest.mark.parametrize(
    'annotations, changes, message',
    [
        ([], {}, 'has no annotations; leave ann_file out to train on images without objects.'),
        (None, {}, 'has no annotations; leave ann_file out to train on images without objects.'),
        ([_ann([1, 1, 5, 5])], dict(images=[]), 'has no images; is it complete?'),
        ([_ann([1, 1, 5, 5]), _ann([1, 1, 5])], {}, ': annotations[1]' + _BAD_ANNOTATION),
        ([_ann([1, 1, 5, 5]), dict(image_id=7, category_id=4)], {}, ': annotations[1]' + _BAD_ANNOTATION),
        ([_ann([1, 1, 5, 'wide'])], {}, ': annotations[0]' + _BAD_ANNOTATION),
        ([_ann([1, 1, 5, 5], category_id=[4])], {}, ': annotations[0]' + _BAD_ANNOTATION),
        (
            [_ann([1, 1, 5, 5])],
            dict(images=[dict(id=7, file_name='a/1.jpg', height=40, width=60), dict(id=8)]),
            ': images[1] is not a dict with an id, a file_name, and positive height and width; fix or remove it.',
        ),
        (
            [_ann([1, 1, 5, 5])],
            dict(images=[dict(id=7, file_name='a/1.jpg', height=-40, width=60)]),
            ': images[0] is not a dict with an id, a file_name, and positive height and width; fix or remove it.',
        ),
        (
            [_ann([1, 1, 5, 5])],
            dict(images=[dict(id=7, file_name='a/1.jpg')] * 2),
            ' has two images of one id (7); give each image its own.',
        ),
        (
            [_ann([1, 1, 5, 5])],
            dict(categories=[4]),
            ': categories is not a list of dicts with an id and a name; fix or remove it.',
        ),
        (
            [_ann([1, 1, 5, 5])],
            dict(categories=[dict(id=4, name='cat'), dict(id=5, name='dog'), dict(id='4', name='cow')]),
            ' has two categories of one id (4); give each category its own.',
        ),
        ([_ann([1, 1, 5, 5]), _ann([True, 1, 5, 5])], {}, ': annotations[1]' + _BAD_ANNOTATION),
        (
            [_ann([5, 5, -3, 6]), _ann([90, 5, 6, 6])],
            {},
            ' has no usable object (1 degenerate or inverted boxes dropped, 1 boxes outside their image dropped); '
            'boxes are [x, y, width, height] in COCO-style files, [x1, y1, x2, y2] in a dict of boxes.',
        ),
        ([_ann([1, 1, 5, 5])], dict(images=[dict(id=7, file_name='gone.jpg')]), 'gone.jpg'),
    ],
)
def test_bad_annotations(folder, annotations, changes, message):
    options = _coco(folder, annotations, **changes)
    told = _message((ValueError, FileNotFoundError), ObjectDataset, **options)
    if message == 'gone.jpg':
        assert told == (
            f'image {folder}/img/gone.jpg, the first of {folder}/ann.json, does not exist; check data_root '
            'and data_prefix.'
        )
    else:
        assert told == f'annotation file {folder}/ann.json{"" if message[0] in " :" else " "}{message}'


@pytest.mark.parametrize('gone', [0, 1])
def test_a_missing_image_is_one_bad_image_wherever_it_is_listed(folder, gone):
    images = [dict(id=1, file_name='a/1.jpg'), dict(id=2, file_name='b/2.JPEG')]
    images[gone]['file_name'] = 'gone.jpg'
    options = _coco(folder, [_ann([1, 1, 5, 5], image_id=1), _ann([1, 1, 5, 5], image_id=2)], images=images)
    dataset = ObjectDataset(**options, max_bad_share=0.5, pipeline=[dict(type='LoadObjectImage')])
    assert dataset[gone]['img_id'] == images[1 - gone]['id']
    assert dataset.bad_images() == [str(folder / 'img/gone.jpg')]


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'is not valid JSON (Expecting value: line 1 column 1 (char 0)); is it complete?'),
        ('{"images": [', 'is not valid JSON (Expecting value: line 1 column 13 (char 12)); is it complete?'),
        (
            '[1, 2]',
            'holds a list; it must be COCO-style (a dict with images and annotations) or a dict {image path: [[x1, '
            'y1, x2, y2], ...]}.',
        ),
        ('{}', 'is empty; leave ann_file out to train on images without objects.'),
        (
            '{"a/1.jpg": [[1, 2, 3]]}',
            "the entry of 'a/1.jpg' is not a list of boxes [x1, y1, x2, y2]; fix or remove it (a "
            'COCO-style file would have images and annotations).',
        ),
        (
            '{"a/1.jpg": [[5, 5, 1, 9]]}',
            'has no usable object (1 degenerate or inverted boxes dropped); boxes are [x, y, '
            'width, height] in COCO-style files, [x1, y1, x2, y2] in a dict of boxes.',
        ),
    ],
)
def test_bad_annotation_files(folder, text, message):
    (folder / 'ann.json').write_text(text)
    told = _message(ValueError, ObjectDataset, data_root=folder, ann_file='ann.json', data_prefix='img')
    assert told.replace('.json:', '.json') == f'annotation file {folder}/ann.json {message}'


def test_missing_and_empty_places(folder):
    roots = '(the shipped configs take their roots from COCO_ROOT, IMAGENET_ROOT and ADE20K_ROOT).'
    assert _message(FileNotFoundError, ObjectDataset, folder / 'none') == (
        f'image folder {folder}/none/ does not exist; check data_root and data_prefix {roots}'
    )
    assert _message(FileNotFoundError, ObjectDataset, folder, 'none.json', 'img') == (
        f'annotation file {folder}/none.json does not exist; check data_root and ann_file {roots}'
    )
    (folder / 'void').mkdir()
    assert _message(ValueError, ObjectDataset, folder / 'void') == (
        f'no image in or below {folder}/void/ (looked for .jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff); name the '
        'folder that holds your images (in a config: data_root and data_prefix).'
    )
    (folder / 'list.txt').write_text('\n \n')
    assert _message(ValueError, ObjectDataset, folder, 'list.txt', 'img') == (
        f'list {folder}/list.txt is empty; write one image path per line, or leave ann_file out to use all images.'
    )
    (folder / 'list.txt').write_bytes(b'\xff\xfe\x80')
    assert _message(ValueError, ObjectDataset, folder, 'list.txt', 'img') == (
        f'list {folder}/list.txt is no text; ann_file must be a .json, or a text file with one image path per line.'
    )
    options = _coco(folder, [_ann([5, 5, 6, 6])], images=[dict(id=7, file_name='a/1.jpg')])
    ObjectDataset(**options, keep_empty=False)
    (folder / 'ann.json').write_text('{"a/1.jpg": []}')
    assert _message(ValueError, ObjectDataset, **options, keep_empty=False) == (
        f'annotation file {folder}/ann.json has no image with an object; set keep_empty=True to use those without.'
    )


def test_bad_options(folder):
    assert _message(ValueError, ObjectDataset, folder / 'img', anno_file='x.json') == (
        "ObjectDataset has no option 'anno_file'; its options are data_root, ann_file, data_prefix, pipeline, seed, "
        'data_fraction, with_masks, with_crowd, keep_empty, min_score, max_bad_share, metainfo, indices, lazy_init.'
    )
    assert _message(ValueError, ObjectDataset, folder / 'img', data_fraction=0) == (
        'data_fraction must be above 0 and at most 1, got 0.'
    )
    assert _message(ValueError, ObjectDataset, folder / 'img', seed=-1) == 'seed must be an integer >= 0, got -1.'
    assert _message(ValueError, ObjectDataset, folder, data_prefix=dict(img='img')) == (
        "data_prefix must be a folder or dict(img_path=folder), got {'img': 'img'}."
    )


def test_mutated_annotations_never_crash(folder):
    polygon = [[10, 5, 20, 5, 20, 15, 10, 15]]
    options = _coco(folder, [_ann([10, 5, 10, 10], segmentation=polygon, id=i) for i in range(3)])
    whole, rng = (folder / 'ann.json').read_text(), np.random.default_rng(0)
    odd = ['null', '-1', '1e400', 'NaN', '[]', '{}', '"x"', 'true', '10' * 200, '']
    accepted = 0
    for _ in range(400):
        tokens = re.sub(r'([],[}])', r' \1 ', whole).split()
        tokens[rng.integers(0, len(tokens))] = odd[rng.integers(0, len(odd))]
        (folder / 'ann.json').write_text(' '.join(tokens))
        try:
            dataset = ObjectDataset(**options)
            accepted += np.isfinite(dataset.get_data_info(0)['bboxes']).all()
        except (ValueError, FileNotFoundError) as error:
            assert str(folder) in str(error) and len(str(error).splitlines()) == 1
    assert 20 < accepted < 350
