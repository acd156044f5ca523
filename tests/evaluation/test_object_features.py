"""Features of objects that someone points at: as by hand, over a data set, and the sheet of neighbours."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS

import odis_mm
from helpers import make_odis, make_vit
from odis_mm.cli import checkpoints as commands
from odis_mm.datasets import ObjectDataset
from odis_mm.evaluation import FrozenBackbone
from odis_mm.evaluation.object_features import extract_dataset, neighbour_sheet
from odis_mm.transfer import save_backbone


def image(seed, height=32, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_boxes_by_hand(tmp_path):
    vit = make_vit()
    cv2.imwrite(str(tmp_path / 'a.png'), image(1)[..., ::-1])
    found = odis_mm.extract_object_features(
        vit,
        [image(0), tmp_path / 'a.png', image(2)],
        [[[8, 16, 16, 32], [0, 0, 32, 32]], [], [[0, 0, 9, 8]]],
        size=32,
        batch_size=1,
    )
    assert found.image.tolist() == [0, 0, 2] and found.boxes[0].tolist() == [8, 16, 16, 32]
    frozen = FrozenBackbone(vit)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [9, 13]] = True
    _, token = frozen.read_objects(torch.from_numpy(image(0)).permute(2, 0, 1)[None], [mask])
    torch.testing.assert_close(found.token[0], token[0], atol=1e-5, rtol=1e-5)
    plain = frozen(torch.from_numpy(image(0)).permute(2, 0, 1)[None])
    torch.testing.assert_close(found.token[1], plain.token[0], atol=1e-5, rtol=0)  # the whole image: an ordinary ViT
    together = odis_mm.extract_object_features(
        vit, [image(0), image(1), image(2)], [[[8, 16, 16, 32], [0, 0, 32, 32]], [], [[0, 0, 9, 8]]], size=32
    )
    torch.testing.assert_close(together.token, found.token, atol=1e-5, rtol=0)


def test_each_rank_gets_what_it_asked_for(monkeypatch):
    asked = [image(0), image(1), image(2)], [[[0, 0, side, 16]] for side in (8, 16, 24)]
    alone = odis_mm.extract_object_features(make_vit(), *asked, size=32)
    monkeypatch.setattr('odis_mm.evaluation.frozen.get_dist_info', lambda: (1, 2))
    found = odis_mm.extract_object_features(make_vit(), *asked, size=32)
    assert found.image.tolist() == [0, 1, 2] and torch.equal(found.boxes, alone.boxes)
    torch.testing.assert_close(found.token, alone.token)


def test_masks_by_hand():
    vit = make_vit()
    mask = np.zeros((2, 32, 32), bool)
    mask[0, 18:22, 9:15] = True  # within cell (2, 1) of the 4 x 4 grid
    mask[1, 0:8, 0:12] = True  # cell (0, 0) and half of (0, 1)
    found = odis_mm.extract_object_features(vit, [image(0)], [mask], size=32)
    assert found.boxes.tolist() == [[9, 18, 15, 22], [0, 0, 12, 8]]
    frozen, pixels = FrozenBackbone(vit), torch.from_numpy(image(0)).permute(2, 0, 1)[None]
    map_ = frozen(pixels).map[0]
    torch.testing.assert_close(found.pooled[0], map_[:, 2, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooled[1], (map_[:, 0, 0] * 2 + map_[:, 0, 1]) / 3, atol=1e-5, rtol=0)
    touched = torch.zeros(1, 16, dtype=torch.bool)
    touched[0, 9] = True
    torch.testing.assert_close(found.token[0], frozen.read_objects(pixels, [touched])[1][0], atol=1e-5, rtol=0)


def test_models_checkpoints_and_convnets(tmp_path):
    model = make_odis()
    with torch.no_grad():
        model.teacher['backbone'].ln1.bias.add_(1.0)  # teacher and student differ
    save_backbone(tmp_path / 'a.pth', model.teacher_backbone_state(), dict(num_heads=4))
    boxes = [[[0, 0, 20, 20]]]
    first, second, third = (
        odis_mm.extract_object_features(source, [image(0)], boxes, size=32)
        for source in (model, tmp_path / 'a.pth', model.branch('student'))
    )
    torch.testing.assert_close(first.token, second.token)
    assert (first.token - third.token).abs().max() > 0.1
    five = dict(type='ViewPreprocessor', mean=[1.0] * 5, std=[2.0] * 5)
    model = make_odis(backbone=dict(in_channels=5), data_preprocessor=five)
    pixels = np.concatenate([image(0), image(1)[..., :2]], 2)
    assert odis_mm.extract_object_features(model, [pixels], boxes, size=32).token.shape == (1, 32)
    resnet = odis_mm.extract_object_features(
        MODELS.build(dict(type='mmpretrain.ResNet', depth=18)), [image(0)], boxes, size=64
    )
    assert resnet.token is None and resnet.pooled.shape == (1, 512)


@pytest.mark.parametrize(
    'images, regions, needle',
    [
        ([image(0)], [], '1 images and 0 sets'),
        ([image(0)], [[[5, 5, 5, 9]]], r'image 0: box 0 \(5, 5, 5, 9\) has no area'),
        ([image(0)], [[[40, 5, 50, 9]]], 'no area within the image of 32 x 32'),
        ([image(0)], [np.zeros((1, 32, 32), bool)], 'mask 0 is empty'),
        ([image(0)], [np.ones((1, 9, 9), bool)], 'neither boxes'),
        ([image(0).astype(float)], [[[0, 0, 3, 3]]], 'RGB uint8'),
        ([image(0)], [[]], 'no object'),
    ],
)
def test_wrong_input_is_told(images, regions, needle):
    with pytest.raises(ValueError, match=needle):
        odis_mm.extract_object_features(make_vit(), images, regions, size=32)


def test_a_data_set_and_its_sheet(coco_folder, tmp_path, capsys):
    save_backbone(tmp_path / 'a.pth', make_vit().state_dict(), dict(num_heads=4))
    arguments = [
        str(tmp_path / 'a.pth'),
        '--data',
        str(coco_folder),
        '--ann-file',
        'annotations/instances_val2017.json',
        '--images',
        'val2017',
        '--size',
        '32',
        '--workers',
        '0',
    ]
    commands.features_main([*arguments, '--out', str(tmp_path / 'f.npz'), '--sheet', str(tmp_path / 'sheet.png')])
    assert '14 objects of 7 images, 32 channels' in capsys.readouterr().out
    with np.load(tmp_path / 'f.npz', allow_pickle=False) as file:
        found = dict(file)
    assert found['classes'].tolist() == ['bar', 'disc'] and found['token'].shape == found['pooled'].shape == (14, 32)
    assert found['image'].tolist() == [i for i in range(7) for _ in range(2)] and found['file_name'][3].endswith(
        'val2017/3.png'
    )
    img = cv2.imread(found['file_name'][3])[..., ::-1].copy()
    again = odis_mm.extract_object_features(make_vit(), [img], [found['boxes'][6:8]], size=32)
    np.testing.assert_allclose(again.token, found['token'][6:8], atol=1e-5)
    sheet = cv2.imread(str(tmp_path / 'sheet.png'))
    assert sheet.shape[0] == 8 * 175 + 50 and sheet.std() > 20  # eight rows and a legend
    with pytest.raises(SystemExit):
        commands.features_main([*arguments, '--out', str(tmp_path / 'f.pkl')])
    assert 'must end in .npz' in capsys.readouterr().err


def test_labels_are_those_of_the_objects_that_were_read(tmp_path):
    """An annotation that tells no size leaves a box outside of its image to the reading, with its label."""
    for name in ('a.png', 'b.png'):
        cv2.imwrite(str(tmp_path / name), np.full((48, 64, 3), 90, np.uint8))
    boxes = [(1, 1, [100, 100, 10, 10]), (1, 2, [20, 20, 10, 10]), (2, 3, [20, 20, 10, 10])]
    content = dict(
        images=[dict(id=1, file_name='a.png'), dict(id=2, file_name='b.png')],
        annotations=[dict(id=i, image_id=n, category_id=kind, bbox=box) for i, (n, kind, box) in enumerate(boxes)],
        categories=[dict(id=i, name=f'class {i}') for i in (1, 2, 3)],
    )
    (tmp_path / 'boxes.json').write_text(json.dumps(content))
    images = ObjectDataset(str(tmp_path), 'boxes.json', pipeline=[dict(type='LoadObjectImage')])
    extract_dataset(FrozenBackbone(make_vit()), images, tmp_path / 'out.npz', size=32)
    found = np.load(tmp_path / 'out.npz')
    assert [found['classes'][label] for label in found['label']] == ['class 2', 'class 3']
    assert found['image'].tolist() == [0, 1] and len(found['pooled']) == 2


def test_a_sheet_shows_neighbours_of_other_images_only(tmp_path):
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    with pytest.raises(ValueError, match='two images'):
        neighbour_sheet(tmp_path / 'a.png', features, torch.zeros(3, dtype=torch.long), torch.ones(3, 4), [image(0)])
    neighbour_sheet(
        tmp_path / 'a.png',
        features,
        torch.tensor([0, 0, 1]),
        torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 3),
        [image(0), image(1)],
        queries=2,
    )
    assert (tmp_path / 'a.png').is_file()
