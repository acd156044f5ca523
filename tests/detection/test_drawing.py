"""Pictures of boxes: colours that tell classes apart, labels that can be read."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from PIL import Image

from odis_mm.detection.drawing import LONG_SIDE, SHORT_SIDE, BoxVisualizer, class_colours
from odis_mm.detection.inference import FileInferencer

COCO = [(1, 2, 3)] * 80  # what a data set of a few classes inherits in mmdet


def draw(tmp_path, instances, shape=(120, 160), palette=COCO, **options):
    visualizer = BoxVisualizer()
    visualizer.dataset_meta = dict(classes=('cell', 'cost in $ and $'), palette=palette)
    path = tmp_path / 'drawn.png'
    image = np.full((*shape, 3), 255, np.uint8)
    visualizer.add_datasample('drawn', image, DetDataSample(**instances), out_file=str(path), **options)
    return np.asarray(Image.open(path))


def found(boxes, labels, scores, **more):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return dict(
        pred_instances=InstanceData(
            bboxes=boxes, labels=torch.tensor(labels, dtype=torch.int64), scores=torch.tensor(scores), **more
        )
    )


def test_colours_are_far_apart_and_do_not_depend_on_the_number_of_classes():
    assert class_colours(80)[:3] == class_colours(3) and len(set(class_colours(80))) == 80
    apart = min(np.abs(np.subtract(a, b)).sum() for a, b in combinations(class_colours(15), 2))
    assert apart > 90, apart  # 20 in COCO's palette, of the first 13 classes


@pytest.mark.parametrize('palette, colour', [(COCO, class_colours(2)[1]), ([(0, 0, 255), (9, 99, 199)], (9, 99, 199))])
def test_a_class_has_its_colour_and_boxes_their_place(palette, colour, tmp_path):
    picture = draw(tmp_path, found([[40, 60, 80, 100]], [1], [0.9]), palette=palette)
    assert picture.shape == (SHORT_SIDE, 4 * SHORT_SIDE // 3, 3)  # four times as large
    for row, column in ((320, 160), (320, 320), (400, 240)):
        assert np.abs(picture[row, column].astype(int) - colour).max() < 40, (row, column)
    assert (picture[300:380, 180:300] == 255).all() and (picture[:200] == 255).all()


def test_labels_are_read(tmp_path, monkeypatch):
    told, write = [], BoxVisualizer.draw_texts
    monkeypatch.setattr(
        BoxVisualizer,
        'draw_texts',
        lambda self, text, place, **how: told.append((text, place, how)) or write(self, text, place, **how),
    )
    picture = draw(tmp_path, found([[0, 0, 50, 50], [150, 60, 159, 90], [1, 1, 2, 2]], [0, 1, 0], [0.876, 0.41, 0.2]))
    (second, place, _), (first, at, how) = told  # that of 0.2 is below the threshold; the surest comes last
    assert (first, second) == ('cell 0.88', r'cost in \$ and \$ 0.41')
    assert how['vertical_alignments'] == 'top' and at[1] >= 0  # there is no room above
    assert 0 < place[0] < 500  # begins further to the left than its box, so that it does not end outside
    rows = np.flatnonzero((picture[:60, 4:60] < 200).any((1, 2)))
    assert 10 <= how['font_sizes'] * 100 / 72 <= 20 and len(rows)


@pytest.mark.parametrize('shape', [(600, 500), (1, 1), (10, 1900)])
def test_only_small_images_are_enlarged(shape, tmp_path):
    height, width = draw(tmp_path, found([], [], []), shape).shape[:2]
    assert (height, width) == shape if min(shape) >= SHORT_SIDE else max(height, width) <= LONG_SIDE
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.05)
    assert draw(tmp_path, found([[0, 0, *shape[::-1]]], [0], [0.5]), shape).shape[:2] == (height, width)


def test_masks_and_annotations_are_drawn_too(tmp_path):
    mask = np.zeros((1, 120, 160), bool)
    mask[0, 50:70, 60:100] = True
    boxes, labels = torch.tensor([[10.0, 10, 150, 110]]), torch.tensor([0])
    annotated = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(mask.astype(np.uint8), 120, 160))
    instances = dict(gt_instances=annotated, **found(boxes.tolist(), [0], [0.9], masks=torch.from_numpy(mask)))
    both = draw(tmp_path, instances)  # as tools/test.py --show-dir has it: annotated and found, side by side
    left, right = both[:, :640], both[:, 640:]
    tint = (0.6 * 255 + 0.4 * np.array(class_colours(1)[0])).round()
    for half in (left, right):
        assert np.abs(half[240, 320] - tint).max() <= 2 and (half[160, 320] == 255).all()


@pytest.mark.parametrize(
    'loading, size', [('LoadImageFromFile', (80, 120)), ('LoadDetectionImage', (120, 80))], ids=['of mmdet', 'ours']
)
def test_pictures_are_turned_as_the_detector_saw_them(loading, size, tmp_path):
    """mmdet's own loading obeys the EXIF orientation, ours does not: COCO's boxes are of the stored pixels."""
    import json

    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from odis_mm.config import load_config
    from odis_mm.recipes.detector import loading_steps
    from odis_mm.tasks import predict

    cfg = load_config('faster-rcnn_demo')
    assert {step.type for step in loading_steps(cfg)} == {'LoadDetectionImage'}, 'as the recipe has it'
    for step in loading_steps(cfg):
        step.type = loading
    cfg.test_dataloader.dataset.type = 'CocoDataset'
    cfg.dump(str(tmp_path / 'detector.py'))
    init_default_scope('mmdet')
    meta = dict(dataset_meta=dict(classes=tuple('abcdef')))
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=meta), tmp_path / 'iter_1.pth')
    photo = Image.new('RGB', (120, 80))
    exif = photo.getexif()
    exif[274] = 6
    photo.save(tmp_path / 'photo.jpg', exif=exif)
    written = predict(
        tmp_path / 'detector.py', tmp_path / 'iter_1.pth', tmp_path / 'photo.jpg', tmp_path / 'out', quiet=True
    )
    (image,) = json.loads(written.read_text())['images']
    assert (image['width'], image['height']) == size
    with Image.open(tmp_path / 'out' / 'vis' / 'photo.jpg') as picture:
        assert picture.size == (6 * size[0], 6 * size[1])


def test_what_is_found_in_an_image_does_not_depend_on_the_others(tmp_path):
    """Images of one batch are padded to one size, and a ViT sees the padding; one too thin to resize is left out."""
    import json

    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from odis_mm.config import load_config
    from odis_mm.tasks import predict

    cfg = load_config('faster-rcnn_small')
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    cfg.dump(str(tmp_path / 'detector.py'))
    init_default_scope('mmdet')
    torch.manual_seed(0)
    meta = dict(dataset_meta=dict(classes=tuple(map(str, range(80)))))
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=meta), tmp_path / 'iter_1.pth')
    generator = np.random.default_rng(0)
    for name, size in (('thin', (1, 900, 3)), ('0', (60, 90, 3)), ('1', (60, 90, 3)), ('2', (90, 60, 3))):
        Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8)).save(tmp_path / f'{name}.png')

    def found_in(names, **options):
        images = [tmp_path / name for name in names]
        run = dict(out=tmp_path / f'out{len(names)}', quiet=True, **options)
        content = json.loads(predict(tmp_path / 'detector.py', tmp_path / 'iter_1.pth', images, **run).read_text())
        return [a['bbox'] for a in content['annotations'] if a['image_id'] == content['images'][-1]['id']]

    among, alone = found_in(['thin.png', '0.png', '1.png', '2.png'], batch=8), found_in(['2.png'])
    assert len(among) == len(alone) > 1
    np.testing.assert_allclose(among, alone, atol=0.05)


def test_areas_of_predictions_are_those_of_their_masks():
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 5:15, 10:14] = True
    instances = dict(bboxes=torch.tensor([[10.0, 5, 20, 15]]), labels=torch.tensor([0]), scores=torch.tensor([0.9]))
    reader = FileInferencer.__new__(FileInferencer)  # without a detector
    reader.names, reader.found = {'x.png': 'x.png'}, []
    reader.load = lambda results: dict(img=np.zeros((20, 30, 3), np.uint8))
    reader.visualizer = SimpleNamespace(add_datasample=lambda *args, **options: None)
    for further, area in (({}, 100.0), (dict(masks=torch.from_numpy(mask)), 40.0)):
        sample = DetDataSample(pred_instances=InstanceData(**instances, **further), metainfo=dict(ori_shape=(20, 30)))
        reader.visualize(['x.png'], [sample])
        assert reader.found[-1][2][0]['area'] == area
