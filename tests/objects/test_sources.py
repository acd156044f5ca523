"""What the sources find: cuts against scipy's eigenvectors, planted objects, detectors of mmdet, recall against counts
by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import tifffile
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from helpers import environment, make_vit
from odis_mm.cli.objects import find_objects_main
from odis_mm.objects import Attention, Classic, Detector, Found, random_boxes, recall_of, summarise, write_report
from odis_mm.objects.attention import second_eigenvectors, sharpen
from odis_mm.objects.classic import group, region_masks
from odis_mm.objects.found import encode, keep_best, useful
from odis_mm.objects.report import coverage, near_duplicates
from odis_mm.utils.errors import AnnotationError, CheckpointError, ConfigError, FolderInUseError


def _iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = (high - low).clip(0).prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def test_second_eigenvectors_are_those_of_scipy():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 60, 8, generator=generator)
    weight = (features @ features.mT).sigmoid()
    alive = torch.rand(3, 60, generator=generator) > 0.2
    vectors, values = second_eigenvectors(weight, alive, torch.randn(60, generator=generator))
    for w, live, vector, value in zip(weight.double(), alive, vectors.double(), values):
        w = w[live][:, live].numpy()
        degree = np.diag(w.sum(1))
        expected, basis = scipy.linalg.eigh(degree - w, degree)
        assert abs(float(value) - expected[1]) < 1e-4
        x = vector[live].numpy()
        assert abs(x @ degree @ basis[:, 1]) / np.sqrt(x @ degree @ x) > 0.999  # scipy's have norm 1 in that metric
        assert not vector[~live].any()


def test_graphs_that_do_not_converge_are_decomposed():
    torch.manual_seed(0)
    weight = torch.rand(2, 40, 40)
    weight = weight + weight.mT
    alive = torch.ones(2, 40, dtype=torch.bool)
    exact = second_eigenvectors(weight, alive, torch.randn(40), steps=39)
    forced = second_eigenvectors(weight, alive, torch.randn(40), steps=1, tolerance=0.0)
    torch.testing.assert_close(exact[1], forced[1], atol=1e-4, rtol=0)


@pytest.fixture
def scene():
    """Two flat discs on noise: pixels, and their boxes."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 120, (96, 128, 3), dtype=np.uint8)
    boxes = []
    for x, y, r, colour in ((34, 40, 18, (220, 40, 30)), (92, 60, 24, (30, 60, 220))):
        ys, xs = np.mgrid[:96, :128]
        image[(xs + 0.5 - x) ** 2 + (ys + 0.5 - y) ** 2 <= r * r] = colour
        boxes.append([x - r, y - r, x + r, y + r])
    return image, np.array(boxes, float)


def test_classic_finds_planted_objects(scene):
    image, boxes = scene
    (found,) = Classic()([image])
    assert (np.diff(found.scores) <= 0).all() and len(found.boxes) == len(found.masks)
    for box in boxes:
        best = max(range(len(found.boxes)), key=lambda i: _iou(found.boxes[i], box))
        assert _iou(found.boxes[best], box) > 0.85 and best < 6
        mask = coco_mask.decode(found.masks[best])
        ys, xs = np.nonzero(mask)
        np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], found.boxes[best], atol=1.01)
    (again,) = Classic()([image])
    np.testing.assert_array_equal(found.boxes, again.boxes)


def test_hierarchy_ends_in_the_whole_image():
    labels = np.repeat(np.arange(4), 6)[None].repeat(8, 0)
    pixels = np.repeat(np.array([10, 11, 200, 201], np.uint8), 6)[None, :, None].repeat(8, 0).repeat(3, 2)
    parents, boxes, _ = group(pixels, labels)
    assert len(parents) == 7 and parents[-1] == -1 and boxes[-1].tolist() == [0, 0, 24, 8]
    assert parents[0] == parents[1] != parents[2] == parents[3]  # alike ones first
    np.testing.assert_array_equal(region_masks(labels, parents, [parents[0]])[0], labels < 2)


@pytest.fixture
def teacher(tmp_path):
    vit = make_vit()
    path = tmp_path / 'teacher.pth'
    torch.save(dict(meta=dict(num_heads=4), state_dict={f'backbone.{k}': v for k, v in vit.state_dict().items()}), path)
    return path


@pytest.mark.parametrize('features', ['key', 'qkv'])
def test_attention_finds_planted_objects(scene, teacher, features):
    """Even random weights tell flat discs from noise: keys are a linear map of the pixels' patches and their
    positions."""
    image, boxes = scene
    source = Attention(str(teacher), size=128, features=features, heads=4)
    found, other = source([image, image[:, :64]])
    assert len(found.boxes) and (np.diff(found.scores) <= 0).all()
    assert max(Attention(str(teacher), heads=4).grid(image)) == 30, 'unasked'
    assert max(_iou(found.boxes[i], box) for i in range(len(found.boxes)) for box in boxes) > 0.5
    assert all(mask['size'] == [96, 128] for mask in found.masks) and all(
        mask['size'] == [96, 64] for mask in other.masks
    )
    again = source([image])[0]
    np.testing.assert_array_equal(found.boxes, again.boxes)


@pytest.mark.parametrize('channels', [1, 3, 6])
def test_attention_reads_images_as_the_checkpoint_tells(channels, scene, tmp_path):
    """Of values in a narrow part of 16 bits, by the window and normalisation of the file: as from the same pixels in 8
    bits with means of their own; and the pictures of the report are drawn."""
    from odis_mm.objects import find_objects

    vit, pixels = make_vit(in_channels=channels), np.repeat(scene[0], 2, 2)[..., :channels]
    meta = dict(num_heads=4, mean=[90.0] * channels, std=[20.0] * channels)
    reading = dict(window=[1000.0, 1255.0], **(dict(channels=channels) if channels != 3 else {}))
    state = {f'backbone.{k}': v for k, v in vit.state_dict().items()}
    for name, told in (('plain.pth', {}), ('scans.pth', dict(reading=reading))):
        torch.save(dict(meta={**meta, **told}, state_dict=state), tmp_path / name)
    (tmp_path / 'images').mkdir()
    stored, kind = pixels.astype(np.uint16) + 1000, 'rgb' if channels == 3 else 'minisblack'
    tifffile.imwrite(
        tmp_path / 'images' / 'a.tif', stored, photometric=kind, planarconfig='contig' if channels > 1 else None
    )
    source = Attention(str(tmp_path / 'scans.pth'), size=128, heads=4)
    info = find_objects(tmp_path / 'images', tmp_path / 'found.json', source, workers=0)
    content = json.loads((tmp_path / 'found.json').read_text())
    plain = Attention(str(tmp_path / 'plain.pth'), size=128, heads=4)
    (expected,) = plain([pixels])
    assert info['reading'] == reading and len(expected.boxes) and plain.frozen.mean.flatten().tolist() == meta['mean']
    boxes = np.array([entry['bbox'] for entry in content['annotations']])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes, expected.boxes, atol=0.01)
    write_report(content, tmp_path / 'images', tmp_path / 'found.html')
    with pytest.raises(FolderInUseError):
        find_objects(tmp_path / 'images', tmp_path / 'found.json', plain, workers=0)
    assert find_objects(tmp_path / 'images', tmp_path / 'found.json', source, workers=0) == info


def test_a_detector_reads_images_as_its_config_does(tmp_path):
    step = "dict(type='mmdet.LoadDetectionImage', window=(900, 1400))"
    (tmp_path / 'scans.py').write_text(f'test_dataloader = dict(dataset=dict(pipeline=[{step}, dict(type="Resize")]))')
    assert Detector(str(tmp_path / 'scans.py'), 'none.pth').reading == dict(window=(900, 1400))


def test_a_detector_is_read_without_lines_of_mmdet(tmp_path):
    (tmp_path / 'own.py').write_text(
        "custom_imports = dict(imports=['odis_mm.detection.metrics'])\n"
        'test_dataloader = dict(dataset=dict(pipeline=[]))'
    )
    code = "from odis_mm.objects import Detector; print(Detector('own.py', 'none.pth').reading)"
    run = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert run.stdout == '{}\n' and 'faster_coco_eval' not in run.stderr


def test_a_config_of_a_pretraining_is_no_detector(tmp_path, capsys):
    Image.new('RGB', (8, 8)).save(tmp_path / '0.png')
    torch.save({}, tmp_path / 'a.pth')
    words = [str(tmp_path), '--source', 'detector', '--config', 'gtsa_small', '--checkpoint', str(tmp_path / 'a.pth')]
    with pytest.raises(SystemExit) as stop:
        find_objects_main([*words, '--out', str(tmp_path / 'a.json')])
    assert stop.value.code == 2 and 'gtsa_small.py is no config of a detector' in capsys.readouterr().err


def test_limit_and_bad_images_are_told(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for i in range(3):
        image = np.full((64, 64, 3), 40, np.uint8)
        for x in (4, 26, 46):
            image[8:24, x : x + 14] = rng.integers(120, 255, 3)
        Image.fromarray(image).save(tmp_path / f'images/{i}.png')
    (tmp_path / 'images/3.png').write_bytes(b'')
    words = [str(tmp_path / 'images'), '--source', 'classic', '--workers', '0', '--size', '64']
    find_objects_main([*words, '--top', '1', '--out', str(tmp_path / 'one.json')])
    said = capsys.readouterr().out
    assert '3 of 3 images have the 1 objects that --top keeps of an image at most: they may show more' in said
    assert '1 images cannot be read and are left out: ' in said and '3.png' in said
    assert 'limit of 1 objects (--top)</td><td>3<' in (tmp_path / 'one.html').read_text()
    assert json.loads((tmp_path / 'one.json').read_text())['info']['images_at_top'] == 3
    find_objects_main([*words, '--top', '999', '--out', str(tmp_path / 'all.json')])
    assert '--top keeps' not in capsys.readouterr().out
    assert 'limit of 999 objects (--top)</td><td>0<' in (tmp_path / 'all.html').read_text()


def test_a_report_among_the_images_leaves_no_pictures_there(tmp_path, capsys):
    """The next command would search them, and find another number of images than the file was made of."""
    Image.new('RGB', (64, 64)).save(tmp_path / '0.jpg')
    words = [str(tmp_path), '--source', 'classic', '--workers', '0', '--out', str(tmp_path / 'objects.json')]
    for _ in range(2):
        find_objects_main(words)
        assert {path.name for path in tmp_path.iterdir()} == {'0.jpg', 'objects.json', 'objects.html'}


def test_attention_messages(teacher):
    with pytest.raises(ConfigError, match="features='query' is unknown"):
        Attention(str(teacher), features='query')


def test_sharpened_masks_follow_the_picture(scene):
    image, _ = scene
    truth = (image[..., 0] > 180) & (image[..., 2] < 100)
    patches = truth.reshape(12, 8, 16, 8).mean((1, 3)) > 0.4
    grey = image.mean(2, dtype=np.float32) / 255
    coarse = patches.repeat(8, 0).repeat(8, 1)
    iou = [(mask & truth).sum() / (mask | truth).sum() for mask in (coarse, sharpen(grey, patches, 8))]
    assert iou[1] > iou[0] + 0.03


def test_best_boxes_are_kept_whatever_their_order():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 40, 40]], float)
    assert keep_best(boxes, np.array([0.5, 0.6, 0.1, 0.2]), 0.7, 10).tolist() == [1, 3, 2]
    assert keep_best(boxes, np.full(4, 0.5), 0.7, 2).tolist() == [0, 2]
    assert useful(boxes, 40, 40, 0.2, 0.9).tolist() == [True, True, True, False]
    assert coco_mask.area(encode(np.eye(2, dtype=bool), 8, 8)) == 32


# ---- recall and report


def _content(boxes, scores=None, categories=(1,)):
    images = [dict(id=i + 1, file_name=f'{i}.png', width=100, height=80) for i in range(len(boxes))]
    annotations = []
    for i, group_ in enumerate(boxes):
        for j, (x1, y1, x2, y2) in enumerate(group_):
            entry = dict(
                id=len(annotations) + 1,
                image_id=i + 1,
                category_id=categories[j % len(categories)],
                bbox=[x1, y1, x2 - x1, y2 - y1],
            )
            annotations.append(entry if scores is None else dict(entry, score=scores[i][j]))
    return dict(images=images, annotations=annotations, categories=[dict(id=c, name=str(c)) for c in categories])


def test_recall_against_counts_by_hand():
    truth = _content([[(0, 0, 40, 40), (50, 50, 90, 70)], [(10, 10, 50, 50)]], categories=(3, 7))
    found = _content([[(60, 0, 90, 30), (0, 0, 40, 40)], [(10, 10, 50, 42), (0, 0, 9, 9)]], [[0.9, 0.8], [0.7, 0.1]])
    for image in truth['images']:
        image['id'] += 10
    for entry in truth['annotations']:
        entry['image_id'] += 10  # matched by name, not by number
    measures = recall_of(found, truth)
    assert measures['AR@10 IoU 0.5'] == pytest.approx(66.67, abs=0.01)  # two of three
    assert measures['AR@1 IoU 0.5'] == pytest.approx(33.33, abs=0.01)
    # the second has IoU 0.8: 7 of 10 thresholds
    assert measures['AR@10'] == pytest.approx(100 * (1 + 0.7) / 3, abs=0.01)
    assert (
        measures['precision@10'] == 50
        and measures['AR@100 small'] == pytest.approx(0)
        or measures['AR@100 small'] is None
    )
    with pytest.raises(AnnotationError, match='have none of the images that were searched'):
        recall_of(
            _content([[(0, 0, 5, 5)]], [[1]]), dict(truth, images=[dict(id=1, file_name='x.png', width=1, height=1)])
        )


def test_recall_pools_no_two_images_of_one_file_name():
    found = _content([[(0, 0, 40, 40)], [(50, 50, 90, 70)]], [[0.9], [0.8]])
    truth = _content([[(0, 0, 40, 40), (50, 50, 90, 70)]])
    found['images'][0]['file_name'], found['images'][1]['file_name'] = 'a/0.png', 'b/0.png'
    with pytest.raises(AnnotationError, match='have none of the images'):  # either could be meant
        recall_of(found, truth)
    truth['images'][0]['file_name'] = 'a/0.png'
    assert recall_of(found, truth)['AR@10'] == 50


def test_neighbours_that_one_box_holds_are_merged():
    truth = _content([[(0, 0, 20, 20), (22, 0, 42, 20), (60, 60, 80, 80)], [(0, 0, 20, 20), (22, 0, 42, 20)], []])
    both, first, third = (0, 0, 42, 20), (0, 0, 20, 20), (55, 55, 95, 79)
    found = _content([[both, first, third], [], [both]], [[0.9, 0.8, 0.7], [], [0.9]])
    assert (
        recall_of(found, truth)['merged@10'] == 20
    )  # of five the second; the first is met, the third alone in its box
    crowded = _content([[both, *[third] * 9, first], [both], []], [[0.9] * 10 + [0.1], [0.9], []])
    assert recall_of(crowded, truth)['merged@10'] == 80  # the box of the first is the eleventh
    truth['annotations'][1]['iscrowd'] = 1
    assert recall_of(found, truth)['merged@10'] == 0


def test_random_boxes_keep_sizes_and_stay_inside():
    found = _content([[(60, 0, 90, 30), (0, 0, 40, 40)]], [[0.9, 0.8]])
    moved = random_boxes(found, seed=1)
    assert [entry['bbox'][2:] for entry in moved['annotations']] == [[30, 30], [40, 40]]
    assert [entry['bbox'] for entry in moved['annotations']] != [entry['bbox'] for entry in found['annotations']]
    for x, y, w, h in (entry['bbox'] for entry in moved['annotations']):
        assert 0 <= x <= 100 - w and 0 <= y <= 80 - h


def test_report_agrees_with_independent_counts(tmp_path):
    rng = np.random.default_rng(0)
    boxes = [[(x, y, x + w, y + h) for x, y, w, h in rng.integers(1, 40, (n, 4)).tolist()] for n in (0, 5, 3)]
    content = _content(boxes, [rng.random(len(group_)).tolist() for group_ in boxes])
    (tmp_path / 'images').mkdir()
    content['images'][1]['file_name'] = '$^$.jpg'  # no formula
    content['images'][2]['file_name'] = 'caf\udce9.jpg'  # of a byte that is no UTF-8
    for image, bits in zip(content['images'], (0x00FF, 0x00FE, 0xFFFFFFFFFFFFFFFF)):
        Image.fromarray(np.full((80, 100, 3), 99, np.uint8)).save(tmp_path / 'images' / image['file_name'])
        image['dhash'] = f'{bits:016x}'
    numbers, measures = write_report(content, tmp_path / 'images', tmp_path / 'objects.html', content)
    assert (numbers['images'], numbers['objects'], numbers['empty'], numbers['small']) == (
        3,
        8,
        1,
        sum((c - a) * (d - b) < 1024 for g in boxes for a, b, c, d in g),
    )
    for group_, share in zip(boxes, numbers['coverage']):
        painted = np.zeros((80, 100), bool)
        for x1, y1, x2, y2 in group_:
            painted[y1:y2, x1:x2] = True
        assert share == pytest.approx(painted.mean())
    assert numbers['duplicate_images'] == [['0.png', '$^$.jpg']]
    assert measures['found']['AR@100'] == 100
    page = (tmp_path / 'objects.html').read_text()
    assert 'src="data:image/png' in page and 'http' not in page.replace('http-equiv', '') and '<td>8</td>' in page
    assert (tmp_path / 'objects_sheet.png').is_file() and (tmp_path / 'objects_numbers.png').is_file()
    assert near_duplicates([dict(file_name='a')]) == [] and coverage(np.zeros((0, 4)), 5, 5) == 0


# ---- detectors


def test_detector_and_its_rpn(tmp_path, scene):
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    from odis_mm.config import load_config

    cfg = load_config('mask_rcnn/faster-rcnn_demo')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
    cfg.dump(str(tmp_path / 'detector.py'))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'detector.pth')
    image, _ = scene
    options = dict(
        config=str(tmp_path / 'detector.py'), checkpoint=str(tmp_path / 'detector.pth'), top=7, min_score=0.0
    )
    for rpn in (False, True):
        (found,) = Detector(rpn=rpn, **options)([image])
        assert isinstance(found, Found) and (np.diff(found.scores) <= 0).all()
        assert len(found.boxes) <= 7 and (found.boxes >= 0).all() and (found.boxes <= [128, 96, 128, 96]).all()
        upright = np.ascontiguousarray(np.rot90(image))  # padded to a common size, a ViT would see it
        thin = np.zeros((1, 900, 3), np.uint8)  # of which no pixel is left when it is resized
        none, among, _ = Detector(rpn=rpn, **options)([thin, image, upright])
        np.testing.assert_allclose(among.boxes, found.boxes, atol=1e-3)
        assert len(none.boxes) == len(none.scores) == 0
    assert len(found.boxes) == 7
    torch.save(dict(state_dict={'backbone.x': torch.zeros(1)}), tmp_path / 'detector.pth')
    with pytest.raises(CheckpointError, match='is no checkpoint of'):
        Detector(**options)([image])


# ---- the command


def test_command(tmp_path, scene, capsys):
    from odis_mm.cli import main

    image, boxes = scene
    folder = tmp_path / 'photos'
    folder.mkdir()
    Image.fromarray(image).save(folder / 'a.png')
    truth = dict(_content([boxes.tolist()]), images=[dict(id=1, file_name='a.png', width=128, height=96)])
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    out = tmp_path / 'objects.json'
    main(
        [
            'find-objects',
            str(folder),
            '--out',
            str(out),
            '--source',
            'classic',
            '--workers',
            '0',
            '--truth',
            str(tmp_path / 'truth.json'),
        ]
    )
    assert 'AR@10 IoU 0.5 100.0' in capsys.readouterr().out and (tmp_path / 'objects.html').is_file()
    main(
        [
            'find-objects',
            str(folder),
            '--out',
            str(tmp_path / 'import.json'),
            '--source',
            'import',
            '--annotations',
            str(tmp_path / 'truth.json'),
        ]
    )
    assert summarise(json.loads((tmp_path / 'import.json').read_text()))['objects'] == 2
    _import_again(tmp_path, folder, truth)
    capsys.readouterr()
    for options, sentence in (
        (['--source', 'classic', '--rpn'], '--source classic has no option --rpn'),
        (['--source', 'classic', '--device', 'cpu'], '--source classic has no option --device'),
        (['--source', 'import', '--workers', '2', '--max-bad-share', '0'], 'no option --max-bad-share, --workers.'),
        (['--source', 'attention'], '--source attention needs --checkpoint'),
        (['--source', 'import', '--annotations', str(tmp_path / 'none')], 'do not exist'),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(['find-objects', str(folder), '--out', str(tmp_path / 'x.json'), *options])
        assert stopped.value.code == 2 and sentence in capsys.readouterr().err


def _import_again(tmp_path, folder, truth):
    """The same import goes on to its report, another one overwrites nothing, and the page tells what is left out."""
    from odis_mm.cli import main

    out, page = tmp_path / 'import.json', tmp_path / 'import.html'
    before, words = out.read_bytes(), ['find-objects', str(folder), '--source', 'import', '--annotations']
    page.unlink()
    main([*words, str(tmp_path / 'truth.json'), '--out', str(out)])
    assert out.read_bytes() == before and page.is_file() and 'left out' not in page.read_text()
    truth['annotations'][1]['bbox'] = [1, 2, 0, 4]
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    with pytest.raises(SystemExit) as stopped:
        main([*words, str(tmp_path / 'truth.json'), '--out', str(out)])
    assert stopped.value.code == 2 and out.read_bytes() == before
    main([*words, str(tmp_path / 'truth.json'), '--out', str(tmp_path / 'less.json')])
    text = (tmp_path / 'less.html').read_text()
    assert '<td>annotations left out</td><td>1</td>' in text and 'a box of a.png without extent' in text


def test_a_comparison_on_a_part_of_the_images_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(sys.modules[write_report.__module__], 'print_log', lambda line, **_: said.append(line))
    images = [dict(id=i, file_name=f'{i}.png', width=40, height=30) for i in (1, 2)]
    for image in images:
        Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(tmp_path / image['file_name'])
    found = [dict(id=i, image_id=i, category_id=1, bbox=[5, 5, 10, 10], score=0.5) for i in (1, 2)]
    content = dict(images=images, annotations=found, categories=[dict(id=1, name='object')])
    part = dict(content, images=images[:1], annotations=found[:1])
    for truth, told in ((content, []), (part, ['have 1 of the 2 images'])):
        write_report(content, tmp_path, tmp_path / 'objects.html', truth)
        assert len(said) == len(told) and all(words in line for words, line in zip(told, said))
