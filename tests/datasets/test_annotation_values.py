"""Numbers as text, sizes, flags and ids: the same answer from every reader."""

import json

import cv2
import numpy as np
import pytest

from odis_mm.cli.verify import verify_main
from odis_mm.datasets import ObjectDataset, values
from odis_mm.utils.errors import AnnotationError


@pytest.mark.parametrize(
    'call, given, right',
    [
        (values.number, '64', 64.0),
        (values.number, ' -6.5e1 ', -65.0),
        (values.number, '.5', 0.5),
        (values.number, 3, 3.0),
        (values.side, '64', 64),
        (values.side, 64.0, 64),
        (values.side, '64.0', 64),
        (values.side, None, None),
        (values.side, 0, None),
        (values.flag, '0', False),
        (values.flag, 0.0, False),
        (values.flag, 'false', False),
        (values.flag, '', False),
        (values.flag, None, False),
        (values.flag, '1', True),
        (values.flag, True, True),
        (values.flag, 'True', True),
        (values.identity, '7', 7),
        (values.identity, 7.0, 7),
        (values.identity, '007', '007'),
        (values.identity, 'a', 'a'),
    ],
)
def test_values(call, given, right):
    found = call(given)
    assert found == right and type(found) is type(right)


@pytest.mark.parametrize(
    'call, given',
    [
        *[(values.number, wrong) for wrong in ('', 'x', '1_0', 'nan', 'inf', '6,4', True, None, [1], '٣')],
        *[(values.side, wrong) for wrong in (64.4, '64.4', -1, 'big', float('nan'), float('inf'), 1e12)],
        *[(values.flag, wrong) for wrong in ('maybe', [])],
        *[(values.identity, wrong) for wrong in (None, 6.5, True, [], {})],
    ],
)
def test_what_is_no_value_is_refused(call, given):
    with pytest.raises((ValueError, TypeError)):
        call(given)


def test_rows_of_numbers():
    np.testing.assert_array_equal(values.numbers([['1', 2, 3.5, '4.0']], 4), [[1, 2, 3.5, 4]])
    assert values.numbers([], 4).shape == (0, 4)
    for wrong in ([[1, 2, 3]], [[1, 2, 3, 'x']], [[1, 2, 3, None]], [[1, 2, 3, True]], [[1, 2, 3, 4], [1]]):
        with pytest.raises((ValueError, TypeError)):
            values.numbers(wrong, 4)


def coco(folder, image=(), annotation=(), **more):
    (folder / 'img').mkdir(exist_ok=True)
    cv2.imwrite(str(folder / 'img/a.png'), np.full((48, 64, 3), 9, np.uint8))
    content = dict(
        images=[{'id': 1, 'file_name': 'a.png', 'width': 64, 'height': 48, **dict(image)}],
        annotations=[
            {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [4, 5, 20, 10], 'iscrowd': 0, **dict(annotation)},
            {'id': 2, 'image_id': 1, 'category_id': 1, 'bbox': [30, 5, 20, 10]},
        ],
        categories=[dict(id=1, name='thing')],
        **more,
    )
    (folder / 'ann.json').write_text(json.dumps(content))
    return dict(data_root=folder, ann_file='ann.json', data_prefix='img')


@pytest.mark.parametrize(
    'image, annotation',
    [
        (dict(width='64', height='48'), dict(iscrowd='0')),
        (dict(width=64.0, height='48.0'), dict(iscrowd=False)),
        (dict(width=None, height=None), dict(iscrowd='false')),
        (dict(id='1'), dict(image_id='1', category_id='1')),
        (dict(id=1.0), dict(bbox=['4', '5', '20', ' 10.0'])),
    ],
)
def test_all_readers_take_text_for_numbers(tmp_path, capsys, image, annotation):
    dataset = ObjectDataset(**coco(tmp_path, image, annotation), pipeline=[dict(type='LoadObjectImage')])
    item = dataset[0]
    np.testing.assert_array_equal(item['bboxes'], [[4, 5, 24, 15], [30, 5, 50, 15]])
    assert item['img'].shape == (48, 64, 3) and item['labels'].tolist() == [0, 0]
    verify_main(['--data', str(tmp_path), '--ann-file', 'ann.json', '--images', 'img', '--workers', '0'])
    assert '1 images, 0 bad; 2 objects, 0 bad' in capsys.readouterr().out
    clean = tmp_path / 'clean.json'
    verify_main(f'--data {tmp_path} --ann-file ann.json --images img --workers 0 --clean {clean}'.split())
    assert len(json.loads(clean.read_text())['annotations']) == 2, 'nothing is dropped'


@pytest.mark.parametrize(
    'image, annotation, needle',
    [
        (dict(width=64.4), {}, r'images\[0\] is not a dict'),
        (dict(width='wide'), {}, r'images\[0\] is not a dict'),
        ({}, dict(iscrowd='perhaps'), r'annotations\[0\] is not a dict'),
        ({}, dict(bbox=['1_0', 5, 20, 10]), r'annotations\[0\] is not a dict'),
    ],
)
def test_what_is_no_number_is_named(tmp_path, image, annotation, needle):
    with pytest.raises(AnnotationError, match=needle):
        ObjectDataset(**coco(tmp_path, image, annotation))


def test_crowd_as_text_counts_as_crowd(tmp_path):
    assert ObjectDataset(**coco(tmp_path, {}, dict(iscrowd='1'))).counts['crowd regions left out'] == 1
    assert ObjectDataset(**coco(tmp_path, {}, dict(ignore='1'))).counts['crowd regions left out'] == 1


def test_a_dict_of_boxes_takes_text_too(tmp_path):
    options = coco(tmp_path)
    (tmp_path / 'ann.json').write_text(json.dumps({'a.png': [['4', '5', '24', '15']]}))
    np.testing.assert_array_equal(ObjectDataset(**options).get_data_info(0)['bboxes'], [[4, 5, 24, 15]])
