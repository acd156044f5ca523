"""Annotations of other tools: each format written by globox or by its published description, read, and compared box by
box."""

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from globox import Annotation, AnnotationSet, BoundingBox
from PIL import Image
from pycocotools import mask as coco_mask

from odis_mm.datasets import ObjectDataset
from odis_mm.objects import annotations, load_annotations, report
from odis_mm.objects.annotations import imported_splits
from odis_mm.objects.formats import recognise
from odis_mm.tasks.finetune import annotated_splits
from odis_mm.utils.errors import AnnotationError, ConfigError, MissingFileError

SIZES = {'a.jpg': (40, 60), 'b.png': (50, 30), 'c.jpg': (64, 64)}  # height, width
BOXES = {
    'a.jpg': [('cat', (3.0, 4.0, 20.0, 30.0)), ('dog', (30.0, 10.0, 59.0, 39.0))],
    'b.png': [('dog', (1.0, 2.0, 11.0, 22.0))],
    'c.jpg': [('cat', (0.0, 0.0, 64.0, 64.0)), ('cat', (10.0, 20.0, 30.0, 44.0))],
}


@pytest.fixture
def images(tmp_path):
    return _images(tmp_path / 'images', SIZES)


def _images(folder, sizes):
    for name, (height, width) in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(folder / name)
    return folder


def _globox():
    return AnnotationSet(
        Annotation(name, SIZES[name][::-1], [BoundingBox.create(label=label, coords=box) for label, box in boxes])
        for name, boxes in BOXES.items()
    )


def _told(content) -> dict:
    """{image: [(label, (x1, y1, x2, y2)), ...]} of COCO-style content."""
    names = {category['id']: category['name'] for category in content['categories']}
    files = {image['id']: image['file_name'] for image in content['images']}
    told = {name: [] for name in files.values()}
    for ann in content['annotations']:
        x, y, w, h = ann['bbox']
        told[files[ann['image_id']]].append((names[ann['category_id']], (x, y, x + w, y + h)))
    return told


def _check(content, expected=BOXES, atol=0.01):
    told = _told(content)
    assert set(told) == set(expected)
    for name, boxes in expected.items():
        assert [label for label, _ in told[name]] == [label for label, _ in boxes], name
        np.testing.assert_allclose([box for _, box in told[name]], [box for _, box in boxes], atol=atol)
    for image in content['images']:
        assert (image['height'], image['width']) == SIZES[image['file_name'].rsplit('/', 1)[-1]]


def test_voc(tmp_path, images):
    _globox().save_pascal_voc(tmp_path / 'Annotations')
    assert recognise(tmp_path / 'Annotations') == 'voc'
    _check(load_annotations(tmp_path / 'Annotations', images))
    for name, text in (('a.xml', '1'), ('b.xml', '0')):  # as Pascal's evaluation takes difficult objects
        file = tmp_path / 'Annotations' / name
        tree = ElementTree.parse(file)
        for node in [*tree.getroot().iter('object')][:1]:
            for old in node.findall('difficult'):
                node.remove(old)
            ElementTree.SubElement(node, 'difficult').text = text
        tree.write(file)
    content = load_annotations(tmp_path / 'Annotations', images)
    _check(content)
    assert [entry['iscrowd'] for entry in content['annotations']] == [1, 0, 0, 0, 0]


def test_yolo_with_names_and_nested_splits(tmp_path):
    sizes = {f'{split}/images/{name}': size for split in ('train', 'valid') for name, size in SIZES.items()}
    root = _images(tmp_path / 'data', sizes)  # the same stems in both splits, as Roboflow's YOLO exports have them
    for split in ('train', 'valid'):
        _globox().save_yolo_v5(root / split / 'labels', label_to_id={'cat': 1, 'dog': 0})
    (root / 'data.yaml').write_text('names: [dog, cat, bird]\nnc: 3\n')
    content = load_annotations(root, root)
    _check(content, {f'{split}/images/{name}': boxes for split in ('train', 'valid') for name, boxes in BOXES.items()})
    assert [c['name'] for c in content['categories']] == ['dog', 'cat', 'bird']  # in the order of the export
    _check(load_annotations(root / 'train/labels', root / 'train/images'))


@pytest.mark.parametrize(
    'train, val', [('train2017', 'val2017'), ('train_images', 'val_set'), ('Train', 'Validation-1')]
)
def test_splits_are_words_of_the_folders_names(tmp_path, train, val):
    names = {f'images/{train}/a.jpg': (40, 60), f'images/{val}/b.jpg': (50, 30)}
    root = _images(tmp_path / 'data', names)
    for name in names:
        label = root / name.replace('images/', 'labels/', 1).replace('.jpg', '.txt')
        label.parent.mkdir(parents=True)
        label.write_text('0 0.5 0.5 0.25 0.25\n')
    splits = imported_splits(root, None, tmp_path / 'out')
    told = {
        split: [i['file_name'] for i in json.loads(part.ann_file.read_text())['images']]
        for split, part in splits.items()
    }
    assert told == {'train': [f'images/{train}/a.jpg'], 'val': [f'images/{val}/b.jpg']}


def test_yolo_polygons_and_empty_files(tmp_path, images):
    labels = tmp_path / 'labels'
    labels.mkdir()
    (labels / 'a.txt').write_text('0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.25\n')
    (labels / 'b.txt').write_text('')  # an image that was looked at and holds nothing
    content = load_annotations(labels, images)
    (annotation,) = content['annotations']
    np.testing.assert_allclose(annotation['segmentation'], [[6, 4, 30, 4, 30, 20, 6, 10]], atol=1e-6)
    np.testing.assert_allclose(annotation['bbox'], [6, 4, 24, 16])
    assert annotation['area'] == coco_mask.area(coco_mask.frPyObjects(annotation['segmentation'], 40, 60))[0] < 24 * 16
    assert [image['file_name'] for image in content['images']] == ['a.jpg', 'b.png']


@pytest.mark.parametrize('first, second', [('cam1', 'cam2'), ('cam2', 'cam1')])
def test_an_image_is_that_of_the_entry_that_names_it_best(tmp_path, first, second):
    """Of two folders whose images have the same names one is here."""
    images = _images(tmp_path / 'images', {'cam2/1.png': (48, 64)})
    content = dict(images=[], annotations=[], categories=[dict(id=1, name='cat')])
    for number, folder in enumerate((first, second), 1):
        box = [20, 20, 10, 10] if folder == 'cam2' else [1, 1, 10, 10]
        content['images'].append(dict(id=number, file_name=f'{folder}/1.png', height=48, width=64))
        content['annotations'].append(dict(id=number, image_id=number, category_id=1, bbox=box))
    file = tmp_path / 'boxes.json'
    file.write_text(json.dumps(content))
    found = load_annotations(file, images)
    assert _told(found) == {'cam2/1.png': [('cat', (20, 20, 30, 30))]}
    assert 'its image cam1/1.png is not below' in found['info']['skipped'][0]
    for folder, row in (('cam1', '0 0.1 0.1 0.1 0.1'), ('cam2', '0 0.5 0.5 0.5 0.5')):
        place = tmp_path / 'labels' / folder / '1.txt'
        place.parent.mkdir(parents=True)
        place.write_text(row)
    assert _told(load_annotations(tmp_path / 'labels', images, 'yolo')) == {'cam2/1.png': [('0', (16, 12, 48, 36))]}


@pytest.mark.parametrize(
    'reference, told',
    [
        ('cam1/{}.png', True),
        (r'cam1\{}.png', True),
        ('cam2/{}.png', False),
        ('set/cam2/{}.png', False),
        ('{}.png', False),
        ('/home/me/{}.png', False),  # of another machine, as are the next two
        (r'C:\me\{}.png', False),
        ('https://host/{}.png', False),
    ],
)
def test_images_in_another_folder_than_is_named_are_told_of(tmp_path, monkeypatch, reference, told):
    images = _images(tmp_path / 'images', {f'cam2/{i}.png': (48, 64) for i in range(2)})
    content = dict(
        images=[dict(id=i, file_name=reference.format(i), height=48, width=64) for i in range(2)],
        annotations=[dict(id=i + 1, image_id=i, category_id=1, bbox=[1, 1, 10, 10]) for i in range(2)],
        categories=[dict(id=1, name='cat')],
    )
    (tmp_path / 'boxes.json').write_text(json.dumps(content))
    said = []
    for module in (annotations, report):
        monkeypatch.setattr(module, 'print_log', lambda line, **kwargs: said.append(line))
    found = load_annotations(tmp_path / 'boxes.json', images)
    assert set(_told(found)) == {'cam2/0.png', 'cam2/1.png'}
    found['annotations'] = [{**entry, 'score': 1.0} for entry in found['annotations']]
    line = '2 images lie in another folder than is named there and are taken by their own names (cam2/0.png for cam1/0'
    sources = [f'{tmp_path}/boxes.json']
    if '\\' not in reference:  # the truth's names are not those of Windows
        report.write_report(found, images, tmp_path / 'out.html', content)
        sources.append('the annotations to compare with')
    assert len(said) == told * len(sources)
    assert all(text.startswith(f'{source}: {line}') for text, source in zip(said, sources))


@pytest.mark.parametrize('label', ['-1', '100000', '2000000000'])
def test_a_class_of_yolo_that_is_none(tmp_path, images, label):
    """The negative one is not the last of the names, and the large ones make no names up to their own."""
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    (tmp_path / 'a.txt').write_text(f'0 0.5 0.5 0.1 0.1\n{label} 0.5 0.5 0.5 0.5\n')
    (tmp_path / 'b.txt').write_text('0 0.5 0.5 0.4 0.4\n')
    content = load_annotations(tmp_path, images, 'yolo')
    assert _told(content) == {'b.png': [('cat', (9, 15, 21, 35))]}
    assert content['info']['skipped'] == [
        f'{tmp_path}/a.txt: the class {label} is no number from 0 to 99999 (line 2): correct it'
    ]
    assert [category['name'] for category in content['categories']] == ['cat', 'dog']


def test_a_row_of_yolo_that_is_cut_off_is_named(tmp_path, images):
    (tmp_path / 'a.txt').write_text('0 0.5 0.5 0.1 0.1\n\n0 0.5 0.5\n')
    (tmp_path / 'b.txt').write_text('0 0.5 0.5 0.4 0.4\n')
    assert load_annotations(tmp_path, images, 'yolo')['info']['skipped'] == [
        f'{tmp_path}/a.txt: line 3 has 3 values, a box has five (class, x, y, width, height): fix it'
    ]


@pytest.mark.parametrize('list_of', ['classes', 'images'])
def test_lists_that_are_no_text_in_utf8_are_named(tmp_path, images, list_of):
    """As some editors of Windows write them."""
    (images / 'a.txt').write_text('0 .5 .5 .5 .25\n')
    file = images / ('classes.txt' if list_of == 'classes' else 'train.txt')
    file.write_bytes('./a.jpg\nKäse\n'.encode('cp1252' if list_of == 'classes' else 'utf-16'))
    if list_of == 'images':
        (images / 'data.yaml').write_text('names: [cat]\ntrain: train.txt\n')
    with pytest.raises(AnnotationError, match=f'{file.name} cannot be read as text in UTF-8'):
        imported_splits(images, None, tmp_path / 'out')


def test_a_name_of_an_image_may_be_a_number(tmp_path):
    root = _images(tmp_path / 'images', {'7.jpg': (40, 60)})
    box = dict(label='cat', shape_type='rectangle', points=[[1, 1], [20, 20]])
    (root / '7.json').write_text(json.dumps(dict(imagePath=7, imageHeight=40, imageWidth=60, shapes=[box])))
    assert load_annotations(root, root)['images'][0]['file_name'] == '7.jpg'


def test_yolo_rows_in_pixels_are_called_that(tmp_path, images):
    (tmp_path / 'a.txt').write_text('0 30 20 10 10\n')
    with pytest.raises(AnnotationError, match='a.txt: line 1 has numbers of pixels, where YOLO has shares'):
        load_annotations(tmp_path, images, 'yolo')


def test_yolo_names_are_those_of_the_nearest_file(tmp_path):
    labels = _images(tmp_path / 'data' / 'labels', {'a.jpg': (40, 60)})
    (labels / 'a.txt').write_text('1 0.5 0.5 0.5 0.25')
    (tmp_path / 'other.yaml').write_text('names: [of, others]')
    (tmp_path / 'data' / 'obj.names').write_text('near\nby\n')
    assert [c['name'] for c in load_annotations(labels, labels)['categories']] == ['near', 'by']
    (labels / 'classes.txt').write_bytes(b'\xef\xbb\xbfcat\r\ndog\r\n')  # as editors of Windows write it
    assert [c['name'] for c in load_annotations(labels, labels)['categories']] == ['cat', 'dog']
    (labels / 'data.yaml').write_text('names: {0: ox, 1: cow}')
    assert [c['name'] for c in load_annotations(labels, labels)['categories']] == ['ox', 'cow']
    assert [c['name'] for c in load_annotations(tmp_path / 'other.yaml', labels, 'yolo')['categories']][1] == 'others'


@pytest.mark.parametrize(
    'names, read', [("{'0': cat, '1': dog}", ['cat', 'dog']), ("{0: cat, '2': dog}", ['cat', '1', 'dog'])]
)
def test_yolo_names_by_quoted_numbers(tmp_path, images, names, read):
    (tmp_path / 'data.yaml').write_text(f'names: {names}')
    (tmp_path / 'a.txt').write_text('1 0.5 0.5 0.5 0.25')
    assert [c['name'] for c in load_annotations(tmp_path / 'data.yaml', images)['categories']] == read


@pytest.mark.parametrize(
    'names, found',
    [
        ('{a: cat}', "names['a'] is 'cat'"),
        ('{0.5: cat}', "names[0.5] is 'cat'"),
        ('{-1: cat}', "names[-1] is 'cat'"),
        ("{0: cat, '0': dog}", "names['0'] is 'dog'"),
        ('{0: cat, 999999999: dog}', "names[999999999] is 'dog'"),
        ('[[cat, dog]]', "names[0] is ['cat', 'dog']"),
        ('[{0: cat}]', "names[0] is {0: 'cat'}"),
        ('{0: null}', 'names[0] is None'),
        ('[yes, no]', 'names[0] is True'),
        ('cat', "names is 'cat'"),
    ],
)
def test_yolo_names_that_are_not_clear_are_refused(tmp_path, images, names, found):
    (tmp_path / 'data.yaml').write_text(f'names: {names}')
    (tmp_path / 'a.txt').write_text('0 0.5 0.5 0.5 0.25')
    with pytest.raises(AnnotationError, match=re.escape(f'{tmp_path}/data.yaml: {found}; names must be a list')):
        load_annotations(tmp_path / 'data.yaml', images)


@pytest.mark.parametrize('format', ['auto', 'yolo'])
def test_yolo_labels_of_other_images_are_called_that(tmp_path, format):
    root = _images(tmp_path / 'data', {f'images/{split}/{split}.jpg': (40, 60) for split in ('train', 'val')})
    for split in ('train', 'val'):
        (root / 'labels' / split).mkdir(parents=True)
        (root / 'labels' / split / f'other_{split}.txt').write_text('0 0.5 0.5 0.5 0.25\n')
    (root / 'README.txt').write_text('a text\n')
    sentence = (
        f'none of the YOLO label files in {root}/labels/train, {root}/labels/val (other_train.txt, ...) is of an image '
        f'in or below {root}: that of images/train/train.jpg would be train.txt'
    )
    with pytest.raises(AnnotationError, match=re.escape(sentence)):
        load_annotations(root, root, format)
    with pytest.raises(MissingFileError, match='none of the YOLO label files'):
        annotated_splits(root, None, None, None)
    shutil.rmtree(root / 'labels')
    with pytest.raises(AnnotationError, match='no annotations that are recognised'):  # other texts are no labels
        load_annotations(root, root)


def test_yolo_names_beside_the_labels_are_those_of_the_folder_above(tmp_path):
    root = _images(tmp_path / 'data', {f'images/{split}/of_{split}.jpg': (40, 60) for split in ('train', 'val')})
    for split in ('train', 'val'):
        (root / 'labels' / split).mkdir(parents=True)
        (root / 'labels' / split / f'of_{split}.txt').write_text('1 0.5 0.5 0.5 0.25')
    (root / 'labels' / 'classes.txt').write_text('cat\ndog\n')
    assert [c['name'] for c in load_annotations(root, root)['categories']] == ['cat', 'dog']
    (root / 'labels' / 'val' / 'classes.txt').write_text('dog\ncat\n')
    with pytest.raises(AnnotationError, match='labels and .*val list other classes each .*: put one list for all into'):
        load_annotations(root, root)
    (root / 'classes.txt').write_text('ox\ncow\n')
    assert [c['name'] for c in load_annotations(root, root)['categories']] == ['ox', 'cow']


@pytest.mark.parametrize('images', ['.', 'images'])
def test_an_image_of_another_split_is_not_taken(tmp_path, images):
    """Labels of an image that was deleted, whose name the other split has, too."""
    root = _images(tmp_path / 'test_data', {'images/val2017/a.jpg': (40, 60), 'images/train2017/b.jpg': (40, 60)})
    for name in ('train2017/a', 'train2017/b'):
        (root / 'labels' / name).parent.mkdir(parents=True, exist_ok=True)
        (root / 'labels' / f'{name}.txt').write_text('0 0.5 0.5 0.5 0.25')
    content = load_annotations(root / 'labels', root / images, 'yolo')
    assert [image['file_name'].rsplit('/', 1)[-1] for image in content['images']] == ['b.jpg']
    assert 'its image a is not below' in content['info']['skipped'][0]


@pytest.mark.parametrize('reference, used', [('val/a.jpg', True), ('a.jpg', True), ('train/a.jpg', False)])
def test_the_split_of_a_reference_holds(tmp_path, reference, used):
    root = _images(tmp_path, {'val/a.jpg': (40, 60), 'b.jpg': (40, 60)})
    content = json.loads(_coco_file(root / 'all.json').read_text())
    content['images'] = [dict(id=1, file_name=reference), dict(id=2, file_name='train/b.jpg')]
    (root / 'all.json').write_text(json.dumps(content))
    told = [image['file_name'] for image in load_annotations(root / 'all.json', root)['images']]
    assert told == ['val/a.jpg'] * used + ['b.jpg']


@pytest.mark.parametrize('points, width', [(3, 2), (3, 3), (4, 3), (1, 2)])
def test_yolo_key_points_are_left_out(tmp_path, points, width):
    """An odd number of values is no polygon, an even one no fault."""
    _images(tmp_path, {'a.jpg': (40, 60)})
    (tmp_path / 'data.yaml').write_text(f'names: [cat]\nkpt_shape: [{points}, {width}]\n')
    (tmp_path / 'a.txt').write_text('0 0.5 0.5 0.5 0.25' + ' 0.9' * points * width)
    content = load_annotations(tmp_path, tmp_path)
    assert _told(content) == {'a.jpg': [('cat', (15, 15, 45, 25))]} and content['info']['skipped'] == []
    assert 'segmentation' not in content['annotations'][0]


@pytest.mark.parametrize('shape, rows', [([2, 3], 1), ([3, 3], 2), ([2, 2], 10), ([1, 2], 12)])
def test_yolo_key_points_without_a_yaml_are_told(tmp_path, shape, rows):
    """Rows of an odd number would be polygons; those that are corners of boxes all over the image are."""
    rng, (points, width) = np.random.default_rng(0), shape
    lines = []
    for x, y in rng.uniform(0.2, 0.9, (rows, 2)):
        told = np.concatenate((rng.uniform(-0.05, 0.05, (points, 2)) + (x, y), np.ones((points, 1)) * 2), 1)[:, :width]
        lines.append(' '.join(f'{value:g}' for value in (0, x, y, 0.1, 0.1, *told.ravel())))
    _images(tmp_path, {'a.jpg': (40, 60)})
    (tmp_path / 'a.txt').write_text('\n'.join(lines))
    with pytest.raises(AnnotationError, match='key points .*put a data.yaml with names into') as caught:
        load_annotations(tmp_path, tmp_path)
    assert f'kpt_shape: {shape}' in str(caught.value)
    (tmp_path / 'data.yaml').write_text(f'names: [cat]\nkpt_shape: {shape}\n')
    assert 'segmentation' not in load_annotations(tmp_path, tmp_path)['annotations'][0]


@pytest.mark.parametrize('rows', [2, 40])
def test_yolo_corners_of_turned_boxes_are_polygons(tmp_path, rows):
    corners = np.array([[-1, -0.5], [1, -0.4], [1, 0.5], [-1, 0.4]]) * 0.05
    places = np.random.default_rng(0).uniform(0.1, 0.9, (rows, 1, 2))
    lines = [' '.join(f'{value:g}' for value in (0, *(corners + place).ravel())) for place in places]
    _images(tmp_path, {'a.jpg': (40, 60)})
    (tmp_path / 'a.txt').write_text('\n'.join(lines))
    annotations = load_annotations(tmp_path, tmp_path)['annotations']
    assert len(annotations) == rows and all(len(a['segmentation'][0]) == 8 for a in annotations)


def test_yolo_labels_of_turned_photographs_are_left_out(tmp_path):
    """Their shares are of the upright image, and what is trained on are the stored pixels."""
    exif = Image.Exif()
    for name, orientation in (('plain', 1), ('turned', 6), ('on_its_head', 3)):
        exif[274] = orientation
        Image.new('RGB', (60, 40)).save(tmp_path / f'{name}.jpg', exif=exif)
        (tmp_path / f'{name}.txt').write_text('0 0.25 0.5 0.1 0.2')
    content = load_annotations(tmp_path, tmp_path)
    assert [image['file_name'] for image in content['images']] == ['plain.jpg']
    faults = content['info']['skipped']
    assert len(faults) == 2 and all('turned by its EXIF orientation: store it upright' in fault for fault in faults)


@pytest.mark.parametrize(
    'size, orientation, used',
    [
        ((60, 40), 1, True),
        ((60, 40), 2, False),
        ((60, 40), 3, False),
        ((60, 40), 4, False),
        ((60, 40), 6, True),
        ((40, 40), 6, False),
        ((40, 40), 8, False),
        ((40, 40), 99, True),
    ],
)
def test_turned_photographs_whose_sizes_do_not_tell_are_left_out(tmp_path, size, orientation, used):
    """Of 60 x 40 pixels that are shown as 40 x 60 a tool that notes 60 x 40 has drawn on the stored ones."""
    exif = Image.Exif()
    exif[274] = orientation
    Image.new('RGB', size).save(tmp_path / 'a.jpg', exif=exif)
    Image.new('RGB', size).save(tmp_path / 'b.jpg')
    shapes = [dict(label='cat', shape_type='rectangle', points=[[3, 4], [20, 30]])]
    for name in 'ab':
        label = dict(imagePath=f'{name}.jpg', imageHeight=size[1], imageWidth=size[0], shapes=shapes)
        (tmp_path / f'{name}.json').write_text(json.dumps(label))
    content = load_annotations(tmp_path, tmp_path)
    assert [image['file_name'] for image in content['images']] == ['a.jpg'] * used + ['b.jpg']
    assert len(content['info']['skipped']) == (not used)
    assert all('a.jpg is turned by its EXIF orientation: store it upright' in f for f in content['info']['skipped'])


def test_two_categories_of_one_id_are_told(tmp_path, images):
    file = _coco_file(tmp_path / 'a.json')
    content = json.loads(file.read_text())
    content['categories'].append(dict(content['categories'][0], name='other'))
    file.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match='a.json has two categories of one id: give each category its own'):
        load_annotations(file, images)


def test_boxes_of_coco_files_are_of_the_stored_pixels(tmp_path, images):
    exif = Image.Exif()
    exif[274] = 3
    Image.new('RGB', (60, 40)).save(images / 'a.jpg', exif=exif)
    _check(load_annotations(_coco_file(tmp_path / 'a.json'), images))


def test_roboflow_coco(tmp_path):
    root = _images(tmp_path, {f'{split}/{name}': size for split in ('train', 'valid') for name, size in SIZES.items()})
    for split in ('train', 'valid'):
        content = dict(
            images=[],
            annotations=[],
            categories=[dict(id=0, name='pets'), dict(id=1, name='cat'), dict(id=2, name='dog')],
        )
        for name, boxes in BOXES.items():
            content['images'].append(
                dict(id=len(content['images']), file_name=name, height=SIZES[name][0], width=SIZES[name][1])
            )
            for label, (x1, y1, x2, y2) in boxes:
                entry = dict(
                    id=len(content['annotations']),
                    image_id=content['images'][-1]['id'],
                    category_id=dict(cat=1, dog=2)[label],
                )
                content['annotations'].append(
                    dict(entry, bbox=[x1, y1, x2 - x1, y2 - y1], area=12.0, iscrowd=0, segmentation=[])
                )
        (root / split / '_annotations.coco.json').write_text(json.dumps(content))
    content = load_annotations(root, root)
    _check(content, {f'{split}/{name}': boxes for split in ('train', 'valid') for name, boxes in BOXES.items()})
    assert content['annotations'][0]['area'] == 12.0  # the file's own, by which COCO's metrics sort by size


def test_labelme(tmp_path, images):
    _globox().save_labelme(tmp_path / 'labelme')
    _check(load_annotations(tmp_path / 'labelme', images))
    shapes = [
        dict(label='cat', shape_type='polygon', points=[[1, 1], [9, 2], [5, 12]]),
        dict(label='dog', shape_type='circle', points=[[20, 20], [23, 24]]),
        dict(label='dog', shape_type='line', points=[[20, 20], [23, 24]]),
    ]
    file = tmp_path / 'labelme' / 'a.json'
    file.write_text(json.dumps(dict(imagePath='..\\images\\a.jpg', imageHeight=40, imageWidth=60, shapes=shapes)))
    content = load_annotations(file, images)
    assert _told(content) == {'a.jpg': [('cat', (1, 1, 9, 12)), ('dog', (15, 15, 25, 25))]}
    assert content['annotations'][0]['segmentation'] == [[1, 1, 9, 2, 5, 12]]
    assert len(content['info']['skipped']) == 1 and '1 shapes' in content['info']['skipped'][0]
    for name, left in (('b.png', shapes[2:]), ('c.jpg', [])):
        (tmp_path / 'labelme' / f'{name[0]}.json').write_text(json.dumps(dict(imagePath=name, shapes=left)))
    content = load_annotations(tmp_path / 'labelme', images)
    assert [image['file_name'] for image in content['images']] == ['a.jpg', 'c.jpg'], 'b is not known to show nothing'
    assert any(fault.endswith('the only ones of 1 images, which are left out') for fault in content['info']['skipped'])


def test_parts_of_an_object_in_labelme_are_one(tmp_path, images):
    """Those of one label and group: an object that something in front of it cuts in two."""
    parts = [[[1, 1], [9, 2], [5, 12]], [[20, 20], [29, 20], [29, 30]], [[40, 1], [50, 1], [50, 9]]]
    shapes = [
        dict(label=label, group_id=group, shape_type='polygon', points=points)
        for label, group, points in (
            ('cat', 1, parts[0]),
            ('dog', 1, parts[2]),
            ('cat', 1, parts[1]),
            ('cat', None, parts[0]),
            ('cat', None, parts[1]),
        )
    ]
    shapes.append(dict(label='dog', group_id=1, shape_type='rectangle', points=[[30, 1], [35, 5]]))
    (tmp_path / 'a.json').write_text(json.dumps(dict(imagePath='a.jpg', shapes=shapes)))
    content = load_annotations(tmp_path / 'a.json', images)
    assert _told(content) == {
        'a.jpg': [('cat', (1, 1, 29, 30)), ('dog', (30, 1, 50, 9)), ('cat', (1, 1, 9, 12)), ('cat', (20, 20, 29, 30))]
    }
    cat, dog, *_ = content['annotations']
    assert cat['segmentation'] == [np.ravel(part).tolist() for part in parts[:2]] and 'segmentation' not in dog


def test_cvat(tmp_path, images):
    file = tmp_path / 'annotations.xml'
    _globox().save_cvat(file)
    assert recognise(file) == 'cvat'
    _check(load_annotations(file, images))
    root = ElementTree.parse(file).getroot()
    node = next(image for image in root.iter('image') if image.get('name') == 'b.png')
    mask = np.zeros((50, 30), np.uint8)
    mask[5:9, 4:7] = [[0, 1, 1], [1, 1, 1], [1, 1, 0], [0, 1, 0]]
    runs = '1,7,2,1,1'  # zeros first, row by row inside the rectangle
    ElementTree.SubElement(node, 'mask', dict(label='cat', rle=runs, left='4', top='5', width='3', height='4'))
    ElementTree.SubElement(node, 'polygon', dict(label='cat', points='1,1;9,2;5,12'))
    ElementTree.SubElement(node, 'box', dict(label='dog', xtl='10', ytl='10', xbr='20', ybr='14', rotation='90'))
    ElementTree.ElementTree(root).write(file)
    content = load_annotations(file, images)
    number = next(image['id'] for image in content['images'] if image['file_name'] == 'b.png')
    _, masked, polygon, turned = [ann for ann in content['annotations'] if ann['image_id'] == number]
    assert (coco_mask.decode(masked['segmentation']) == mask).all() and masked['bbox'] == [4, 5, 3, 4]
    assert masked['area'] == mask.sum() == 8
    assert polygon['segmentation'] == [[1, 1, 9, 2, 5, 12]]
    np.testing.assert_allclose(turned['bbox'], [13, 7, 4, 10])


def test_cvat_shapes_that_are_not_read_are_counted(tmp_path, images):
    box = '<box label="cat" xtl="1" ytl="2" xbr="11" ybr="22"/>'
    others = '<ellipse cx="9" cy="9" rx="3" ry="4"/><polyline points="1,1;2,2"/><points points="1,1"/><cuboid/>'
    (tmp_path / 'a.xml').write_text(
        f'<annotations><image name="b.png" width="30" height="50">{box}{others}<tag label="dark"/></image>'
        '<image name="a.jpg" width="60" height="40"><ellipse cx="9" cy="9" rx="3" ry="4"/></image></annotations>'
    )
    content = load_annotations(tmp_path / 'a.xml', images)
    assert _told(content) == {'b.png': [('cat', (1, 2, 11, 22))]}, 'not a.jpg, which is not known to show nothing'
    told = '5 shapes that are no box, polygon or mask, the only ones of 1 images, which are left out'
    assert content['info']['skipped'] == [f'{tmp_path}/a.xml: {told}']


def test_labelstudio(tmp_path, images):
    def result(kind, name, **value):
        height, width = SIZES[name]
        return dict(type=kind, original_width=width, original_height=height, value=value)

    tasks = [
        dict(
            data=dict(image=f'/data/upload/3/0a1b2c3d-{name}'),
            annotations=[
                dict(was_cancelled=True, result=[]),
                dict(
                    result=[
                        result(
                            'rectanglelabels',
                            name,
                            x=100 * x1 / SIZES[name][1],
                            y=100 * y1 / SIZES[name][0],
                            width=100 * (x2 - x1) / SIZES[name][1],
                            height=100 * (y2 - y1) / SIZES[name][0],
                            rotation=0,
                            rectanglelabels=[label],
                        )
                        for label, (x1, y1, x2, y2) in boxes
                    ]
                ),
            ],
        )
        for name, boxes in BOXES.items()
    ]
    file = tmp_path / 'tasks.json'
    file.write_text(json.dumps(tasks))
    assert recognise(file) == 'labelstudio'
    _check(load_annotations(file, images))

    small = [
        dict(
            image=t['data']['image'],
            annotator=1,
            label=[
                dict(r['value'], original_width=r['original_width'], original_height=r['original_height'])
                for r in t['annotations'][1]['result']
            ],
        )
        for t in tasks
    ]
    file.write_text(json.dumps(small))  # JSON-MIN
    _check(load_annotations(file, images))

    turned = result('rectanglelabels', 'c.jpg', x=50, y=50, width=25, height=12.5, rotation=90, rectanglelabels=['cat'])
    polygon = result('polygonlabels', 'c.jpg', points=[[0, 0], [50, 0], [25, 50]], polygonlabels=['dog'])
    task = dict(data=dict(image='/data/local-files/?d=some/c.jpg'), annotations=[dict(result=[turned, polygon])])
    file.write_text(json.dumps([task]))
    told = _told(load_annotations(file, images))
    assert told == {
        'c.jpg': [('cat', (24, 32, 32, 48)), ('dog', (0, 0, 32, 32))]
    }  # turned clockwise about its top left corner


@pytest.mark.parametrize('name', ['50%20.jpg', '#1.jpg', 'é.jpg'])
def test_labelstudio_images_beside_other_texts_and_of_stores(tmp_path, name):
    """A task may hold texts before its image; names in a store are not quoted."""
    root = _images(tmp_path / 'images', {name: (40, 60)})
    value = dict(x=10, y=10, width=50, height=50, rectanglelabels=['cat'])
    result = [dict(original_width=60, original_height=40, value=value)]
    data = dict(id='7', note='see //[x', image=f's3://bucket/{name}')
    (tmp_path / 'export.json').write_text(json.dumps([dict(data=data, annotations=[dict(result=result)])]))
    content = load_annotations(tmp_path / 'export.json', root)
    assert [image['file_name'] for image in content['images']] == [name]


def test_labelstudio_tasks_that_nobody_annotated_are_not_listed(tmp_path, images):
    """They were images without objects, on which all that a detector finds is wrong."""
    value = dict(x=10, y=10, width=50, height=50, rectanglelabels=['cat'])
    result = [dict(original_width=60, original_height=40, value=value)]
    found = [[dict(result=result)], [dict(was_cancelled=True, result=[])], []]
    tasks = [dict(data=dict(image=name), annotations=a) for name, a in zip(('a.jpg', 'b.png', 'b.png'), found)]
    (tmp_path / 'export.json').write_text(json.dumps(tasks))
    content = load_annotations(tmp_path / 'export.json', images)
    assert [image['file_name'] for image in content['images']] == ['a.jpg']
    told = f'{tmp_path}/export.json: 2 tasks without an annotation, or with cancelled ones alone'
    assert content['info']['skipped'] == [told]
    tasks[1]['annotations'] = [dict(result=[])]  # looked at: no object
    (tmp_path / 'export.json').write_text(json.dumps(tasks))
    assert len(load_annotations(tmp_path / 'export.json', images)['images']) == 2
    answer = dict(original_width=30, original_height=50, value=dict(choices=['blurred']))
    brush = dict(original_width=30, original_height=50, value=dict(format='rle', rle=[1, 2], brushlabels=['cat']))
    for regions, count in (([answer], 2), ([answer, brush], 1)):  # what the brush has drawn is not read
        tasks[1]['annotations'] = [dict(result=regions)]
        (tmp_path / 'export.json').write_text(json.dumps(tasks))
        assert len(load_annotations(tmp_path / 'export.json', images)['images']) == count


def test_labelstudio_regions_of_several_results_and_tools(tmp_path, images):
    """A region's label, and each answer about it, is a result that repeats its shape; JSON-MIN has a list a tool."""
    place = dict(x=25, y=50, width=25, height=25, rotation=0)
    size = dict(original_width=64, original_height=64)
    values = [
        dict(place),  # of <Rectangle> with <Labels>
        dict(place, labels=['cat']),
        dict(place, choices=['occluded']),
        dict(place, rectanglelabels=['dog']),  # another object at the same place
    ]
    task = dict(data=dict(image='c.jpg'), annotations=[dict(result=[dict(size, value=value) for value in values])])
    file = tmp_path / 'export.json'
    file.write_text(json.dumps([task]))
    box = (16, 32, 32, 48)
    assert _told(load_annotations(file, images)) == {'c.jpg': [('cat', box), ('dog', box)]}
    drawn = dict(
        box=[dict(size, **place, rectanglelabels=['cat'])],
        outline=[dict(size, points=[[0, 0], [50, 0], [25, 50]], polygonlabels=['dog'])],
    )
    file.write_text(json.dumps([dict(image='c.jpg', annotator=1, **drawn)]))
    assert _told(load_annotations(file, images)) == {'c.jpg': [('cat', box), ('dog', (0, 0, 32, 32))]}


def test_openimages(tmp_path, images):
    rows = []
    for name, boxes in BOXES.items():
        for label, (x1, y1, x2, y2) in boxes:
            height, width = SIZES[name]
            row = dict(ImageID=name.split('.')[0], Source='xclick', LabelName=f'/m/{label}', Confidence=1, IsGroupOf=0)
            rows.append(dict(row, XMin=x1 / width, XMax=x2 / width, YMin=y1 / height, YMax=y2 / height))
    rows.append(dict(rows[0], ImageID='not_here'))
    rows[1]['IsGroupOf'] = 1
    rows[2]['IsGroupOf'] = -1  # unknown
    with open(tmp_path / 'train-annotations-bbox.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / 'class-descriptions-boxable.csv').write_text('/m/cat,cat\n/m/dog,dog\n')
    content = load_annotations(tmp_path / 'train-annotations-bbox.csv', images)
    _check(content)
    assert [ann['iscrowd'] for ann in content['annotations']] == [0, 1, 0, 0, 0]
    assert len(content['info']['skipped']) == 1 and 'not_here' in content['info']['skipped'][0]


def test_sa1b(tmp_path, images):
    for name, boxes in BOXES.items():
        annotations = []
        for _, (x1, y1, x2, y2) in boxes:
            mask = np.zeros(SIZES[name], np.uint8)
            mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
            rle = coco_mask.encode(np.asfortranarray(mask))
            rle['counts'] = rle['counts'].decode()
            annotations.append(
                dict(
                    segmentation=rle,
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=int(mask.sum()),
                    predicted_iou=0.9,
                    stability_score=0.97,
                )
            )
        image = dict(image_id=1, width=SIZES[name][1], height=SIZES[name][0], file_name=name)
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(image=image, annotations=annotations)))
    content = load_annotations(tmp_path, images)
    _check(content, {name: [('object', box) for _, box in boxes] for name, boxes in BOXES.items()})
    assert content['annotations'][0]['score'] == 0.9 and 'counts' in content['annotations'][0]['segmentation']
    (tmp_path / 'coco.json').write_text(json.dumps(content))
    info = ObjectDataset(images, tmp_path / 'coco.json').get_data_info(0)  # what pretraining makes of it
    assert len(info['bboxes']) == 2 and len(info['masks']) == 2


def test_what_cannot_be_used_is_left_out_by_name(tmp_path, images):
    folder = tmp_path / 'Annotations'
    _globox().save_pascal_voc(folder)
    (folder / 'a.xml').write_text((folder / 'a.xml').read_text().replace('<width>60', '<width>61'))
    (folder / 'b.xml').write_text('<annotation><filename>b.png')
    content = load_annotations(folder, images)
    assert [image['file_name'] for image in content['images']] == ['c.jpg']
    size, broken = sorted(content['info']['skipped'], key=len, reverse=True)
    assert '60 x 40 pixels, not 61 x 40' in size or '60 x 40 pixels, not 61 x 40' in broken
    for file in folder.iterdir():
        file.write_text('<annotation>')
    with pytest.raises(AnnotationError, match='no usable object in voc format; the first fault: .* is not valid XML'):
        load_annotations(folder, images, 'voc')


def test_messages(tmp_path, images):
    with pytest.raises(MissingFileError, match='annotations .* do not exist'):
        load_annotations(tmp_path / 'no', images)
    with pytest.raises(MissingFileError, match='image folder .* does not exist'):
        load_annotations(tmp_path, tmp_path / 'no')
    with pytest.raises(ConfigError, match="format 'vco' is unknown"):
        load_annotations(tmp_path, images, 'vco')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(AnnotationError, match='holds no annotations that are recognised: name the format'):
        load_annotations(tmp_path / 'empty', images)


def test_numbers_flags_and_ids_as_text_are_one_rule(tmp_path, images):
    """The file of another tool that quotes everything is the file that does not."""
    plain = json.loads(_coco_file(tmp_path / 'plain.json').read_text())

    def quoted(node):
        if isinstance(node, dict):
            return {key: quoted(value) for key, value in node.items()}
        if isinstance(node, list):
            return [quoted(value) for value in node]
        return f' {node}' if isinstance(node, (int, float)) else node

    text = quoted(plain)
    text['annotations'][0].update(iscrowd='0', score='0.5', area='12.0', image_id='1')
    text['images'][0].update(id='1.0', height='40.0')
    (tmp_path / 'text.json').write_text(json.dumps(text))
    read, expected = (load_annotations(tmp_path / f'{name}.json', images) for name in ('text', 'plain'))
    _check(read)
    first = read['annotations'].pop(0)
    expected['annotations'].pop(0)
    assert read == expected and (first['iscrowd'], first['score'], first['area']) == (0, 0.5, 12.0)

    text['images'][0]['height'] = '40.4'  # no whole number of pixels: that file is not read, and told
    (tmp_path / 'text.json').write_text(json.dumps(text))
    with pytest.raises(AnnotationError, match="'40.4' is not a whole number of pixels"):
        load_annotations(tmp_path / 'text.json', images)


@pytest.mark.parametrize('box', [['1', '2', 'x', '4'], [1, 2, float('nan'), 4], [1, 2, float('inf'), 4], [1, 2], None])
def test_one_box_that_is_none_is_told_and_costs_itself_alone(tmp_path, images, box):
    content = json.loads(_coco_file(tmp_path / 'a.json').read_text())
    content['annotations'][1]['bbox'] = box
    content['annotations'][2]['image_id'] = 'gone'
    (tmp_path / 'a.json').write_text(json.dumps(content))
    read = load_annotations(tmp_path / 'a.json', images)
    assert len(read['annotations']) == 3 and len(read['info']['skipped']) == 2
    assert any('annotations[2]' in fault for fault in read['info']['skipped'])


def test_sizes_and_flags_as_text_in_the_other_formats(tmp_path, images):
    _globox().save_pascal_voc(tmp_path / 'voc')
    for file in (tmp_path / 'voc').iterdir():
        file.write_text(file.read_text().replace('</width>', '.0</width>').replace('<width>', '<width> '))
    _check(load_annotations(tmp_path / 'voc', images))
    label = dict(
        imagePath='a.jpg',
        imageHeight='40',
        imageWidth='60.0',
        shapes=[
            dict(label='cat', shape_type='rectangle', points=[['3', '4'], ['20', '30']]),
            dict(label='dog', shape_type='polygon', points=[['30', 10], [59, '10'], [59, 39], [30, 39]]),
        ],
    )
    (tmp_path / 'a.json').write_text(json.dumps(label))
    _check(load_annotations(tmp_path / 'a.json', images), {'a.jpg': BOXES['a.jpg']})
    (tmp_path / 'boxes.csv').write_text(
        'ImageID,LabelName,XMin,YMin,XMax,YMax,IsGroupOf\na,cat,0.05,0.1,0.5,0.75,true\na,dog, 0.5 ,0.25,0.9,0.9,0\n'
    )
    read = load_annotations(tmp_path / 'boxes.csv', images)
    assert [a['iscrowd'] for a in read['annotations']] == [1, 0]


def test_ignored_objects_of_coco_files_are_crowds(tmp_path, images):
    """As where the file is trained on without an import."""
    content = json.loads(_coco_file(tmp_path / 'a.json').read_text())
    content['annotations'][1]['ignore'] = 1
    (tmp_path / 'a.json').write_text(json.dumps(content))
    read = load_annotations(tmp_path / 'a.json', images)
    assert [annotation['iscrowd'] for annotation in read['annotations']] == [0, 1, 0, 0, 0]


def _coco_file(path):
    content = dict(images=[], annotations=[], categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])
    for number, (name, boxes) in enumerate(BOXES.items(), 1):
        height, width = SIZES[name]
        content['images'].append(dict(id=number, file_name=name, height=height, width=width))
        for label, (x1, y1, x2, y2) in boxes:
            content['annotations'].append(
                dict(
                    id=len(content['annotations']),
                    image_id=number,
                    category_id=1 + (label == 'dog'),
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    iscrowd=0,
                )
            )
    path.write_text(json.dumps(content))
    return path
