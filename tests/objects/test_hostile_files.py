"""Files that people have, in the search for objects and in the checker: each is read, or named and left out."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from odis_mm.cli.verify import verify_main
from odis_mm.objects import finding
from odis_mm.objects.recall import read_truth, recall_of
from odis_mm.utils.errors import AnnotationError

NAN = float('nan')


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    """A bright box on noise in many kinds of files; the names of those that cannot be read begin with ``bad``."""
    root = tmp_path_factory.mktemp('hostile')
    pixels = np.random.default_rng(0).integers(0, 60, (48, 64, 3)).astype(np.uint8)
    pixels[10:30, 20:50] = 250, 200, 40
    scene, exif = Image.fromarray(pixels), Image.Exif()
    exif[274] = 6  # a quarter turn
    scene.save(root / 'plain.jpg')
    scene.save(root / 'turned.jpg', exif=exif)
    scene.convert('CMYK').save(root / 'cmyk.jpg')
    scene.convert('RGBA').save(root / 'alpha.webp')
    scene.convert('1').save(root / 'bits.png')
    scene.quantize(8).save(root / 'palette.png')
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 16).save(root / 'deep.png')
    scene.save(root / 'animation.png', save_all=True, append_images=[scene.rotate(180)])
    scene.resize((1, 1)).save(root / 'pixel.png')
    scene.resize((64, 1)).save(root / 'line.png')
    Image.new('RGB', (40, 40)).save(root / 'black.png')
    data = (root / 'plain.jpg').read_bytes()
    (root / 'bad_cut.jpg').write_bytes(data[: len(data) // 2])
    (root / 'bad_empty.png').write_bytes(b'')
    scene.save(root / 'animation.gif', save_all=True, append_images=[scene])
    (root / 'animation.gif').rename(root / 'gif.jpg')
    return root


def test_the_search_reads_what_training_reads(hostile, tmp_path):
    from odis_mm.objects.classic import Classic

    pytest.importorskip('skimage')
    lines = []
    info = finding.find_objects(
        hostile, tmp_path / 'out.json', Classic(size=64), workers=0, max_bad_share=0.5, say=lines.append
    )
    bad = [name for name, _ in info['bad_images'] if name != 'gif.jpg']  # new versions of OpenCV read it
    assert sorted(bad) == ['bad_cut.jpg', 'bad_empty.png']
    content = json.loads((tmp_path / 'out.json').read_text())
    sizes = {image['file_name']: (image['height'], image['width']) for image in content['images']}
    own = {'pixel.png': (1, 1), 'line.png': (1, 64), 'black.png': (40, 40)}
    assert {'gif.jpg': (48, 64), **sizes} == {
        path.name: own.get(path.name, (48, 64)) for path in hostile.iterdir() if path.name not in bad
    }
    names = {image['id']: image['file_name'] for image in content['images']}
    for entry in content['annotations']:
        x, y, w, h = entry['bbox']
        height, width = sizes[names[entry['image_id']]]
        assert 0 <= x < x + w <= width and 0 <= y < y + h <= height and np.isfinite(entry['score'])
    for name in ('plain.jpg', 'turned.jpg', 'cmyk.jpg', 'alpha.webp', 'palette.png', 'deep.png', 'animation.png'):
        found = [entry['bbox'] for entry in content['annotations'] if names[entry['image_id']] == name]
        iou = coco_mask.iou(np.array(found), np.array([[20.0, 10, 30, 20]]), [0])
        assert iou.max() > 0.8, name


def coco(annotations=(), **changes):
    images = [dict(id=i, file_name=name, height=48, width=64) for i, name in ((1, 'plain.jpg'), (2, 'cmyk.jpg'))]
    return {**dict(images=images, annotations=[*annotations, box()], categories=[dict(id=1, name='thing')]), **changes}


def box(**changes):
    return {**dict(id=1, image_id=1, category_id=1, bbox=[20, 10, 30, 20], iscrowd=0), **changes}


def test_the_checker_names_annotations_that_it_was_not_given(hostile, tmp_path, capsys):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'train.json').write_text(json.dumps(coco([])))
    (tmp_path / 'images').symlink_to(hostile)
    with pytest.raises(SystemExit):  # some of the files cannot be read
        verify_main(['--data', str(tmp_path), '--workers', '0'])
    told = 'boxes not looked at: annotations/train.json; to check them add '
    named = capsys.readouterr().out.partition(told)[2].split()[:4]
    assert named == ['--ann-file', 'annotations/train.json', '--images', 'images']
    verify_main(['--data', str(tmp_path), '--workers', '0', *named])
    said = capsys.readouterr().out
    assert ' 0 bad; 1 objects, 0 bad' in said and 'not looked at: ' not in said


@pytest.mark.parametrize(
    'wrong, objects, bad, told',
    [
        (box(id=2, bbox=[NAN, 10, 30, 20]), 2, 1, 'the box [nan, 10, 30, 20] has no pixel inside the image'),
        (box(id=2, bbox=[500, 500, 30, 20]), 2, 1, 'the box [500, 500, 30, 20] has no pixel inside the image'),
        (box(id=2, bbox=[30, 20, -10, 5]), 2, 1, 'the box [30, 20, -10, 5] has no pixel inside the image'),
        (box(id=2, segmentation=[[1, 2, NAN, 4, 5, 6]]), 2, 1, 'a polygon is not a list of x, y, x, y'),
        (box(id=2, image_id=77), 1, 0, '1 annotations belong to no image of the file'),
        (box(id=1, bbox=[1, 2, 9, 9]), 2, 0, '1 annotations have the id of another one'),
        (box(id='1', bbox=[1, 2, 9, 9]), 2, 0, '1 annotations have the id of another one'),
    ],
)
def test_the_checker_tells_what_is_wrong_with_an_object(hostile, tmp_path, capsys, wrong, objects, bad, told):
    (tmp_path / 'ann.json').write_text(json.dumps(coco([wrong])))
    argv = ['--ann-file', str(tmp_path / 'ann.json'), '--images', str(hostile), '--workers', '0']
    try:
        verify_main([*argv, '--clean', str(tmp_path / 'clean.json')])
        code = 0
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().out
    assert code == min(bad, 1) and told in said and f'2 images, 0 bad; {objects} objects, {bad} bad' in said
    kept = json.loads((tmp_path / 'clean.json').read_text())['annotations']
    assert len(kept) == objects - bad and box() in kept


@pytest.mark.parametrize(
    'content, told',
    [
        ('', 'is not valid JSON'),
        ('[' * 100000, 'is not valid JSON'),
        ([1, 2], 'holds a list'),
        ({}, 'is not of COCO style'),
        (dict(images=None, annotations=None), 'is not of COCO style'),
        (coco(images=['plain.jpg']), r'images\[0\] is not a dict with an id and a file_name'),
        (coco(images=[dict(file_name='plain.jpg')]), r'images\[0\] is not a dict'),
        (coco(images=[dict(id=1, file_name='plain.jpg')] * 2), 'two images of one id'),
        (coco([box(bbox=[1, 2])]), r'annotations\[0\] is not a dict with an image_id and a bbox'),
        (coco([box(bbox=None)]), r'annotations\[0\] is not a dict'),
        (coco([dict(id=3, image_id=1)]), r'annotations\[0\] is not a dict'),
        (coco([box(iscrowd='perhaps')]), r'annotations\[0\] is not a dict'),
        (coco([3]), r'annotations\[0\] is not a dict'),
    ],
)
def test_what_is_no_annotation_to_compare_with_is_refused(tmp_path, content, told):
    path = tmp_path / 'truth.json'
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(AnnotationError, match=told) as caught:
        read_truth(path)
    assert str(path) in str(caught.value)


def test_annotations_to_compare_with_follow_the_rule_of_all_readers(tmp_path):
    """Text for numbers; boxes without a pixel do not count; crowd regions neither count nor cost."""
    odd = [
        box(id=2, bbox=[NAN, 10, 30, 20]),
        box(id=2, bbox=[30, 20, -10, 5]),
        box(image_id='2', bbox=['20', '10', '30', '20.0'], iscrowd='false', area='600'),
        box(image_id=2, bbox=[0, 0, 10, 10], iscrowd='1'),
        box(image_id=1, bbox=[0, 0, 12, 12], ignore=1),
    ]
    (tmp_path / 'truth.json').write_text(json.dumps(coco(odd)))
    truth = read_truth(tmp_path / 'truth.json')
    for name, content, told in (
        ('none.json', None, 'none.json cannot be read .No such file or directory.: name a COCO-style json'),
        ('bare.json', '{"images": [], "annotations": []}', 'bare.json has no box to compare with'),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(AnnotationError, match=told):
            read_truth(tmp_path / name)
    assert [(entry['image_id'], entry['bbox'], entry['iscrowd']) for entry in truth['annotations']] == [
        (2, [20, 10, 30, 20], 0),
        (2, [0, 0, 10, 10], 1),
        (1, [0, 0, 12, 12], 1),
        (1, [20, 10, 30, 20], 0),
    ]
    found = coco([box(image_id=2)])
    assert recall_of(found, truth)['AR@10'] == 100
    found['annotations'].append(box(id=9, image_id=1, bbox=[0, 0, 12, 12]))  # of what is ignored: no false one
    as_given = dict(truth, annotations=[dict(a, iscrowd=0, ignore=a['iscrowd']) for a in truth['annotations']])
    for same in (truth, as_given):
        assert recall_of(found, same)['precision@10'] == 100 and recall_of(found, same)['AR@10'] == 100


def test_ids_of_images_to_compare_with_may_be_numbers_and_text(tmp_path):
    images = [dict(id=key, file_name=f'{key}.png', width=64, height=64) for key in (7, 'x')]
    content = coco([box(image_id=key) for key in (7, 'x', 1)], images=images)  # of the last one no image is listed
    (tmp_path / 'truth.json').write_text(json.dumps(content))
    found = coco([box(image_id=key) for key in (7, 'x')], images=images)
    assert recall_of(found, read_truth(tmp_path / 'truth.json'))['AR@10'] == 100
