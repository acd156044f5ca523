"""k-NN on labelled folders: the protocol's pixels, scikit-learn's votes, objects at inference, the hook and its
ranks."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from PIL import Image
from pycocotools import mask as coco_mask
from sklearn.neighbors import KNeighborsClassifier
from torchvision import transforms

import odis_mm
from helpers import BACKBONE, make_vit, odis_runner
from odis_mm.cli import checkpoints as commands
from odis_mm.datasets.image_io import read_image
from odis_mm.engine.hooks import KNNHook
from odis_mm.evaluation import (
    FrozenBackbone,
    LabelledImages,
    image_features,
    knn_accuracy,
    knn_images,
    labelled_split,
    region_split,
)
from odis_mm.evaluation.frozen import frozen_from
from odis_mm.evaluation.knn import nearest
from odis_mm.transfer import read_checkpoint, save_backbone
from odis_mm.utils.errors import ConfigError


def sklearn_accuracy(train, train_labels, test, test_labels, k):
    oracle = KNeighborsClassifier(k, metric='cosine', algorithm='brute', weights=lambda d: np.exp((1 - d) / 0.07))
    return 100 * oracle.fit(train.double(), train_labels).score(test.double(), test_labels)


@pytest.mark.parametrize('ks', [(10, 20, 100, 200)])
def test_imagenette_equals_scikit_learn(shared_data, ks):
    frozen = FrozenBackbone(make_vit(img_size=64, patch_size=16))
    train, val = labelled_split(str(shared_data / 'imagenette'), frozen, 64, most=(240, 100))
    assert len(train.classes) == 10 and len(train) == 240 and len(val) == 100 and train.classes[0] == 'n01440764'
    (voters, voter_labels), (tested, labels) = (
        image_features(frozen, images, batch_size=50) for images in (train, val)
    )
    found = knn_images(frozen, train, val, ks)
    for feature in ('token', 'patch_mean'):
        for k in ks:
            assert found[feature][k] == pytest.approx(
                sklearn_accuracy(voters[feature], voter_labels, tested[feature], labels, k)
            )
    assert 15 < found['patch_mean'][10] < 100  # random weights, yet above the chance of 10 classes


@pytest.mark.parametrize('chunk', [1, 7, 64, 10_000])
def test_chunks_change_memory_only(chunk):
    g = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(100, 8, generator=g), torch.randn(30, 8, generator=g)
    best, place = nearest(queries, keys, 5, chunk)
    expected, where = (queries @ keys.T).topk(5)
    torch.testing.assert_close(best, expected)
    assert torch.equal(place, where)
    labels, test_labels = torch.randint(0, 4, (100,), generator=g), torch.randint(0, 4, (30,), generator=g)
    whole = knn_accuracy(keys, labels, queries, test_labels, ks=(5, 20))
    assert knn_accuracy(keys, labels, queries, test_labels, ks=(5, 20), chunk=chunk) == whole


@pytest.mark.parametrize('wrong', [dict(ks=(20, 0)), dict(ks=(-1,)), dict(temperature=0.0)])
def test_votes_that_decide_nothing_are_refused(wrong):
    features, labels = torch.eye(4), torch.arange(4)
    with pytest.raises(ConfigError, match='k-NN needs k of 1 or more and a temperature above 0'):
        knn_accuracy(features, labels, features, labels, **wrong)


def test_pixels_are_those_of_the_protocol(labelled_images):
    """Resize to size * 256/224 and centre crop are those of torchvision on PIL images (DINO's), to a grey level of
    rounding."""
    images = LabelledImages(str(labelled_images / 'val'), size=56)
    protocol = transforms.Compose(
        [
            transforms.Resize(64, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(56),
            transforms.PILToTensor(),
        ]
    )
    for i in range(len(images)):
        item = images[i]
        expected = protocol(Image.fromarray(read_image(item['name'])))
        assert item['pixels'].shape == (3, 56, 56) and (item['pixels'].int() - expected.int()).abs().max() <= 1


@pytest.fixture
def objects(tmp_path):
    """One image, 80 x 40 with a box and a mask, its crop at 28 pixels being the columns 22.5..57.5 and the rows
    2.5..37.5."""
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    (tmp_path / 'train' / 'b').mkdir()
    for name in ('a/0.png', 'b/0.png', 'b/1.png'):
        cv2.imwrite(
            str(tmp_path / 'train' / name),
            np.random.default_rng(len(name)).integers(0, 256, (40, 80, 3), dtype=np.uint8),
        )
    return tmp_path / 'train'


def test_boxes_and_masks_at_inference(objects, tmp_path):
    (tmp_path / 'boxes.json').write_text(
        json.dumps({'a/0.png': [[23, 3, 30, 9]], 'b/0.png': [[0, 0, 10, 10]], 'b/1.png': []})
    )
    boxes = LabelledImages(str(objects), 28, 7, str(tmp_path / 'boxes.json'))
    masks = [boxes[i]['mask'].view(4, 4) for i in range(3)]
    # 28 pixels of the crop stand for 35 of the image, 7 of a patch for 8.75
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 0] = True
    assert torch.equal(masks[0], expected)
    assert masks[1].all() and masks[2].all()  # outside the crop, and no object at all: the whole image
    coco = dict(
        images=[
            dict(id=0, file_name='a/0.png', height=40, width=80),
            dict(id=1, file_name='b/0.png', height=40, width=80),
        ],
        annotations=[
            dict(
                id=0,
                image_id=0,
                category_id=1,
                bbox=[23, 3, 20, 15],
                iscrowd=0,
                segmentation=[[24, 4, 43, 4, 43, 8, 24, 8]],
            )
        ],
        categories=[dict(id=1, name='x')],
    )
    (tmp_path / 'masks.json').write_text(json.dumps(coco))
    mask = LabelledImages(str(objects), 28, 7, str(tmp_path / 'masks.json'))[0]['mask'].view(4, 4)
    assert mask.tolist() == [[True, True, True, False], [False] * 4, [False] * 4, [False] * 4]
    line = np.zeros((40, 80), np.uint8)
    line[7, 24:44] = 1  # a row that no pixel of the resized image lies in the middle of
    rle = coco_mask.encode(np.asfortranarray(line))
    coco['annotations'][0]['segmentation'] = dict(size=[40, 80], counts=rle['counts'].decode())
    (tmp_path / 'thin.json').write_text(json.dumps(coco))
    assert torch.equal(LabelledImages(str(objects), 28, 7, str(tmp_path / 'thin.json'))[0]['mask'].view(4, 4), mask)

    frozen = FrozenBackbone(make_vit(img_size=28, patch_size=7))
    features, labels = image_features(frozen, boxes)
    out = frozen(boxes[0]['pixels'][None], boxes[0]['mask'][None])
    torch.testing.assert_close(features['token'][0], out.token[0])
    torch.testing.assert_close(features['patch_mean'][0], out.map[0, :, 0, 0])
    assert labels.tolist() == [0, 1, 1]
    plain = frozen(boxes[0]['pixels'][None])
    assert (plain.token - out.token).abs().max() > 1e-3


def test_convnets_and_plain_vits_are_measured_too(labelled_images):
    resnet = MODELS.build(dict(type='mmpretrain.ResNet', depth=18))
    stock = make_vit('mmpretrain.VisionTransformer')
    stock.load_state_dict(make_vit().state_dict())
    images = LabelledImages(str(labelled_images / 'val'), 32, most=4)
    pixels = torch.stack([images[i]['pixels'] for i in range(4)])
    ours = FrozenBackbone(make_vit())(pixels)
    for a, b in zip(FrozenBackbone(stock)(pixels), ours):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    features, _ = image_features(FrozenBackbone(resnet), images)
    assert list(features) == ['patch_mean'] and features['patch_mean'].shape == (4, 512)
    assert resnet.training  # as it was: its batch norms go on
    before = resnet.bn1.running_mean.clone()
    FrozenBackbone(resnet)(pixels)
    assert torch.equal(resnet.bn1.running_mean, before)
    with pytest.raises(ValueError, match='no .OBJ. token'):
        FrozenBackbone(resnet)(pixels, torch.ones(4, 1, dtype=torch.bool))
    with pytest.raises(ConfigError, match='no .OBJ. token'):
        labelled_split(str(labelled_images), FrozenBackbone(resnet), 32, ('train.json', 'val.json'))


@pytest.mark.parametrize(
    'break_it, needle',
    [
        (lambda root: cv2.imwrite(str(root / 'train' / 'loose.png'), np.zeros((9, 9, 3))), 'lies in no class folder'),
        (
            lambda root: [
                (root / 'val' / 'b').mkdir(),
                cv2.imwrite(str(root / 'val' / 'b' / '0.png'), np.zeros((9, 9, 3))),
            ],
            'different classes .*c in one',
        ),
    ],
)
def test_wrong_folders_are_told(break_it, needle, tmp_path):
    for part, label in (('train', 'a'), ('train', 'b'), ('val', 'a'), ('val', 'c')):
        (tmp_path / part / label).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / part / label / '0.png'), np.zeros((9, 9, 3)))
    break_it(tmp_path)
    frozen = FrozenBackbone(make_vit())
    with pytest.raises(ValueError, match=needle):
        knn_images(frozen, *labelled_split(str(tmp_path), frozen, 32))
    with pytest.raises(ValueError, match='patches of 8: choose a multiple'):
        frozen.check_size(30)


def test_images_are_read_as_the_training_read_them(tmp_path):
    """A narrow window of 12 bits, which without it would be nearly black or refused, in all measures of an export."""
    rng, window = np.random.default_rng(0), [900.0, 1400.0]
    for part in ('train', 'val'):
        for name in ('a', 'b'):
            (tmp_path / part / name).mkdir(parents=True)
            scan = rng.integers(900, 1400, (32, 32)).astype(np.uint16)
            cv2.imwrite(str(tmp_path / part / name / '0.png'), scan)
    path = tmp_path / 'train' / 'a' / '0.png'
    expected = read_image(path, window=window)
    save_backbone(tmp_path / 'scans.pth', make_vit().state_dict(), dict(num_heads=4, reading=dict(window=window)))
    frozen = frozen_from(tmp_path / 'scans.pth')
    labelled = labelled_split(str(tmp_path), frozen, 32)[0]
    assert np.array_equal(labelled.images[0]['img'], expected)
    boxes = dict(
        images=[dict(id=0, file_name='a/0.png', height=32, width=32)],
        annotations=[dict(id=1, image_id=0, category_id=1, bbox=[0, 0, 16, 16], area=256, iscrowd=0)],
        categories=[dict(id=1, name='x')],
    )
    (tmp_path / 'boxes.json').write_text(json.dumps(boxes))
    regions = region_split(frozen, str(tmp_path), ['boxes.json'] * 2, ['train'] * 2, (32,))[0]
    assert np.array_equal(regions.images[0]['img'], expected)
    region = [[[0, 0, 16, 16]]]
    ours, theirs = (
        odis_mm.extract_object_features(tmp_path / 'scans.pth', [image], region, size=32) for image in (path, expected)
    )
    torch.testing.assert_close(ours.token, theirs.token)
    commands.features_main(
        f'{tmp_path}/scans.pth --data {tmp_path} --ann-file boxes.json --images train --size 32 --workers 0 '
        f'--device cpu --out {tmp_path}/f.npz'.split()
    )
    np.testing.assert_allclose(np.load(tmp_path / 'f.npz')['token'], theirs.token.numpy(), atol=1e-5)


# ---- the hook ------------------------------------------------------------------------------------


def hooked(path, labelled_images, **kwargs):
    hook = KNNHook(str(labelled_images), ks=(1, 5), size=32, interval=1, num_workers=0, batch_size=16, **kwargs)
    runner = odis_runner(path, cfg=dict(model=dict(backbone=BACKBONE)))
    runner.register_hook(hook)
    return runner, hook


def test_the_hook_reads_images_as_the_training_does(labelled_images, tmp_path):
    runner, hook = hooked(tmp_path, labelled_images)
    load = dict(type='LoadObjectImage', window=[0.0, 100.0])
    runner.cfg.train_dataloader = dict(dataset=dict(pipeline=[load]))
    hook.before_train(runner)
    item = hook.train.images[0]
    assert np.array_equal(item['img'], read_image(item['img_path'], window=(0, 100)))


def test_the_hook_measures_the_teacher_and_changes_nothing(labelled_images, tmp_path):
    odis_runner(tmp_path / 'plain').train()
    runner, hook = hooked(tmp_path / 'measured', labelled_images)
    runner.train()
    plain, measured = (read_checkpoint(tmp_path / name / 'epoch_2.pth') for name in ('plain', 'measured'))
    assert all(torch.equal(measured[key], value) for key, value in plain.items())

    record = json.loads((tmp_path / 'measured' / 'knn.json').read_text())
    assert [(point['iteration'], point['epoch']) for point in record['history']] == [(0, 0), (4, 1), (8, 2)]
    teacher = FrozenBackbone(runner.model.branch('teacher'))
    direct = knn_images(teacher, *labelled_split(str(labelled_images), teacher, 32), ks=(1, 5))
    assert (
        record['history'][-1]['token_5'] == direct['token'][5]
        and record['history'][-1]['patch_mean_1'] == direct['patch_mean'][1]
    )
    assert record['random'] == {key: record['history'][0][key] for key in record['random']} and record['start'] is None
    assert (tmp_path / 'measured' / 'knn.png').stat().st_size > 5000
    assert runner.message_hub.get_info('frozen_metrics')['knn/token_5'] == direct['token'][5]
    scalars = next((tmp_path / 'measured').glob('*/vis_data/scalars.json')).read_text()
    assert '"knn/token_5"' in scalars


@pytest.mark.parametrize('whole', [False, True])
def test_weights_from_a_file_are_compared_with_themselves_and_with_random_ones(labelled_images, tmp_path, whole):
    runner, _ = hooked(tmp_path / 'first', labelled_images)
    runner.train()
    runner, _ = hooked(tmp_path / 'second', labelled_images)
    if whole:
        runner._load_from = str(tmp_path / 'first' / 'epoch_2.pth')
    else:
        runner.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='some.pth')
        runner.model.init_weights = lambda: None
    runner.train()
    record = json.loads((tmp_path / 'second' / 'knn.json').read_text())
    assert record['start'] == {key: record['history'][0][key] for key in record['start']}
    torch.manual_seed(0)
    twin = MODELS.build(BACKBONE)
    twin.init_weights()
    random = FrozenBackbone(twin)
    found = knn_images(random, *labelled_split(str(labelled_images), random, 32), ks=(5,))['token'][5]
    assert record['random']['token_5'] == found


def test_a_resumed_run_goes_on_with_the_history(labelled_images, tmp_path):
    runner, _ = hooked(tmp_path, labelled_images, of='student')
    runner.train()
    runner, _ = hooked(tmp_path, labelled_images, of='student')
    runner._train_loop['max_epochs'] = 3
    runner._resume, runner._load_from = True, str(tmp_path / 'epoch_2.pth')
    runner.train()
    record = json.loads((tmp_path / 'knn.json').read_text())
    assert [point['epoch'] for point in record['history']] == [0, 1, 2, 3] and record['of'] == 'student'
    assert record['random'] == {key: record['history'][0][key] for key in record['random']} and record['start'] is None


def test_the_hook_refuses_what_it_cannot_measure(labelled_images, tmp_path):
    with pytest.raises(ValueError, match="'teacher' or 'student'"):
        KNNHook(str(labelled_images), of='both')
    with pytest.raises(ValueError, match='at least 1'):
        KNNHook(str(labelled_images), interval=0)
    runner, hook = hooked(tmp_path, labelled_images)
    runner.model = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match='measures TeacherStudent models, not Linear'):
        hook.before_train(runner)


def test_the_tool(labelled_images, tmp_path, capsys):
    save_backbone(tmp_path / 'a_backbone.pth', make_vit().state_dict(), dict(num_heads=4))
    arguments = [
        str(tmp_path / 'a_backbone.pth'),
        '--data',
        str(labelled_images),
        '--size',
        '32',
        '--ks',
        '1',
        '5',
        '--workers',
        '0',
    ]
    commands.knn_main([*arguments, '--out', str(tmp_path / 'knn.json')])
    frozen = FrozenBackbone(make_vit())
    expected = knn_images(frozen, *labelled_split(str(labelled_images), frozen, 32), ks=(1, 5))
    said = json.loads((tmp_path / 'knn.json').read_text())
    assert said['accuracy']['token'] == {'1': expected['token'][1], '5': expected['token'][5]}
    assert f'| token | {expected["token"][1]:.1f} | {expected["token"][5]:.1f} |' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        commands.knn_main([*arguments[:1], '--data', str(tmp_path / 'gone')])
    assert 'does not exist' in capsys.readouterr().err


@pytest.mark.parametrize('k', [1, 10, 30])
def test_knn_equals_scikit_learn(k):
    g = torch.Generator().manual_seed(0)
    centers = torch.randn(5, 16, generator=g)
    labels, test_labels = torch.randint(0, 5, (300,), generator=g), torch.randint(0, 5, (90,), generator=g)
    train = centers[labels] + 2 * torch.randn(300, 16, generator=g)
    test = centers[test_labels] + 2 * torch.randn(90, 16, generator=g)
    oracle = KNeighborsClassifier(k, metric='cosine', algorithm='brute', weights=lambda d: np.exp((1 - d) / 0.07))
    expected = 100 * oracle.fit(train, labels).score(test, test_labels)
    got = knn_accuracy(train, labels, test, test_labels, ks=(k,), chunk=32)[k]
    assert 20 < expected < 100 and got == pytest.approx(expected)


@pytest.mark.parametrize('temperature', [0.07, 0.01, 0.001])
def test_low_temperatures_equal_scikit_learn(temperature):
    """Features that are much alike, of which exp(similarity / temperature) is beyond float32."""
    g = torch.Generator().manual_seed(0)
    centers = torch.randn(5, 16, generator=g)
    labels, test_labels = torch.randint(0, 5, (300,), generator=g), torch.randint(0, 5, (90,), generator=g)
    train = 5 + centers[labels] + 0.8 * torch.randn(300, 16, generator=g)
    test = 5 + centers[test_labels] + 0.8 * torch.randn(90, 16, generator=g)
    oracle = KNeighborsClassifier(10, metric='cosine', algorithm='brute', weights=lambda d: np.exp(-d / temperature))
    expected = 100 * oracle.fit(train.double(), labels).score(test.double(), test_labels)
    got = knn_accuracy(train, labels, test, test_labels, ks=(10,), temperature=temperature)[10]
    assert got == pytest.approx(expected)


def test_knn_without_features_says_so():
    with pytest.raises(ValueError, match='0 to vote'):
        knn_accuracy(
            torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.ones(1, 4), torch.zeros(1, dtype=torch.long)
        )
