"""A folder of photographs without annotations: each source writes its json and a report, and ODIS trains on it."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from helpers import make_vit
from odis_mm import apis
from odis_mm.cli import main
from odis_mm.config import load_config
from odis_mm.datasets import read_image

COUNT = 8


@pytest.fixture(scope='module')
def photographs(shared_data, tmp_path_factory):
    """The first images of COCO val2017 in a folder of their own, and what is annotated on them."""
    folder = tmp_path_factory.mktemp('photographs')
    truth = json.loads((shared_data / 'coco/annotations/instances_val2017.json').read_text())
    images = sorted(truth['images'], key=lambda image: image['file_name'])[:COUNT]
    for image in images:
        shutil.copy(shared_data / 'coco/val2017' / image['file_name'], folder)
    ids = {image['id'] for image in images}
    return folder, dict(truth, images=images, annotations=[a for a in truth['annotations'] if a['image_id'] in ids])


def classic(folder, truth):
    return ['--size', 96, '--top', 10]


def attention(folder, truth):
    state = {f'backbone.{key}': value for key, value in make_vit().state_dict().items()}
    torch.save(dict(meta=dict(num_heads=4), state_dict=state), folder / 'teacher.pth')
    return ['--checkpoint', folder / 'teacher.pth', '--size', 96]


def detector(folder, truth):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmcv._ext')
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    cfg = load_config('mask_rcnn/faster-rcnn_small')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), folder / 'detector.pth')
    return ['--config', 'mask_rcnn/faster-rcnn_small', '--checkpoint', folder / 'detector.pth', '--top', 6, '--rpn']


def imported(folder, truth):
    """YOLO's format by its description: class and box, center and size, as shares of the image."""
    (folder / 'labels').mkdir()
    for image in truth['images']:
        lines = []
        for entry in truth['annotations']:
            if entry['image_id'] == image['id']:
                (x, y, w, h), (width, height) = entry['bbox'], (image['width'], image['height'])
                lines.append(f'0 {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}')
        (folder / 'labels' / image['file_name']).with_suffix('.txt').write_text('\n'.join(lines))
    (folder / 'labels' / 'classes.txt').write_text('thing\n')
    return ['--annotations', folder / 'labels', '--format', 'yolo']


@pytest.mark.parametrize('source', [classic, attention, detector, imported], ids=lambda source: source.__name__)
def test_from_a_folder_to_odis(source, photographs, tmp_path):
    images, truth = photographs
    out, page = tmp_path / 'objects.json', tmp_path / 'objects.html'
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    name = 'import' if source is imported else source.__name__
    command = ['find-objects', images, '--out', out, '--source', name, '--truth', tmp_path / 'truth.json']
    command += [] if source is imported else ['--workers', 0]
    main([str(word) for word in command + source(tmp_path, truth)])

    content = json.loads(out.read_text())
    assert content['info']['source'] == name and len(content['images']) == COUNT and content['annotations']
    cells = dict(re.findall('<tr><td>([^<]*)</td><td>([^<]*)</td></tr>', page.read_text()))
    counted, covered = independent_count(content, images)
    assert {key: cells[key] for key in counted} == counted
    assert float(cells['share of an image in boxes, mean'].rstrip('%')) == pytest.approx(covered, abs=0.2)
    if source is imported:  # nothing got lost on the way
        assert len(content['annotations']) == len(truth['annotations'])

    options = {
        'train_dataloader.dataset.type': 'ObjectDataset',
        'train_dataloader.dataset.data_root': '',
        'train_dataloader.dataset.ann_file': str(out),
        'train_dataloader.dataset.data_prefix': str(images),
        'train_dataloader.batch_size': 4,
        'train_cfg.max_iters': 4,
        'default_hooks.views': None,
    }
    runner = apis.train(load_config('odis_demo_short', options), work_dir=str(tmp_path / 'run'))
    assert runner.iter == 4 and np.isfinite(runner.message_hub.get_scalar('train/loss').current())
    assert list((tmp_path / 'run').glob('*_backbone.pth'))


def independent_count(content, images):
    """What the report says, by a loop over the json, and the percentage of the images in boxes, by painting them."""
    sizes, painted, boxes_of = {'small': 0, 'medium': 0, 'large': 0}, [], []
    for image in content['images']:
        height, width = read_image(images / image['file_name']).shape[:2]
        assert (height, width) == (image['height'], image['width'])
        pixels, boxes = np.zeros((height * 4, width * 4), bool), []
        for entry in content['annotations']:
            if entry['image_id'] == image['id']:
                x, y, w, h = entry['bbox']
                sizes['small' if w * h < 1024 else 'medium' if w * h < 9216 else 'large'] += 1
                x1, y1, x2, y2 = (round(4 * side) for side in (x, y, x + w, y + h))
                pixels[max(y1, 0) : y2, max(x1, 0) : x2] = True
                boxes.append(entry['bbox'])
        painted.append(pixels.mean())
        boxes_of.append(len(boxes))
    total = sum(boxes_of)
    ordered = sorted(boxes_of)
    median = (ordered[COUNT // 2 - 1] + ordered[COUNT // 2]) / 2
    return {
        'images': str(COUNT),
        'objects': str(total),
        'objects per image, mean / median': f'{total / COUNT:.2f} / {median:g}',
        'images without an object': str(boxes_of.count(0)),
        'small / medium / large objects (below 32², below 96², above, in pixels)': ' / '.join(map(str, sizes.values())),
        'images that cannot be read': '0',
    }, 100 * np.mean(painted)
