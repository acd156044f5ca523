"""Annotations and images of a user's folder are found where exporting tools put them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odis_mm.cli import main
from odis_mm.datasets.layout import annotated_parent, categories, find_splits, held_out, image_folder, split_coco
from odis_mm.utils.errors import AnnotationError, ConfigError, MissingFileError


def coco(names, categories_=('cat', 'dog')):
    return dict(
        images=[dict(id=i, file_name=name, width=8, height=8) for i, name in enumerate(names)],
        annotations=[dict(id=i, image_id=i, category_id=1, bbox=[0, 0, 4, 4]) for i in range(len(names))],
        categories=[dict(id=i, name=name) for i, name in enumerate(categories_, 1)],
    )


def write(root, json_path, image_dir, count=2, names=None):
    names = names or [f'{i}.jpg' for i in range(count)]
    for name in names:
        path = root / image_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(path)
    path = root / json_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco(names)))


LAYOUTS = {
    'COCO': [
        ('train', 'annotations/instances_train2017.json', 'train2017'),
        ('val', 'annotations/instances_val2017.json', 'val2017'),
    ],
    'one folder of images': [
        ('train', 'annotations/train.json', 'images'),
        ('val', 'annotations/val.json', 'images'),
        ('test', 'annotations/test.json', 'images'),
    ],
    'json in each folder': [
        ('train', 'train/_annotations.coco.json', 'train'),
        ('val', 'valid/_annotations.coco.json', 'valid'),
        ('test', 'test/_annotations.coco.json', 'test'),
    ],
    'boxes_*.json': [
        ('train', 'annotations/boxes_train.json', 'images'),
        ('val', 'annotations/boxes_val.json', 'images'),
    ],
    'a single json': [('train', 'labels.json', '.')],
    'images/SPLIT': [
        ('train', 'annotations/train.json', 'images/train'),
        ('val', 'annotations/val.json', 'images/val'),
    ],
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_splits_are_found(tmp_path, layout):
    for _, json_path, images in LAYOUTS[layout]:
        write(tmp_path, json_path, images)
    (tmp_path / 'classes.json').write_text('{"0": "cat"}')
    found = find_splits(tmp_path)
    assert set(found) == {name for name, *_ in LAYOUTS[layout]}
    for name, json_path, images in LAYOUTS[layout]:
        assert found[name].ann_file == tmp_path / json_path
        assert found[name].images.resolve() == (tmp_path / images).resolve()


def test_instances_win_over_captions_and_hidden_folders_are_not_searched(tmp_path):
    write(tmp_path, 'annotations/instances_train2017.json', 'train2017')
    write(tmp_path, 'annotations/captions_train2017.json', 'train2017')
    write(tmp_path, '.cache/train.json', 'train2017')
    assert find_splits(tmp_path)['train'].ann_file.name == 'instances_train2017.json'


def test_two_files_of_one_split_are_named(tmp_path):
    write(tmp_path, 'annotations/train.json', 'images')
    write(tmp_path, 'annotations/train_old.json', 'images')
    with pytest.raises(ConfigError, match=r'more than one .* split .train.*train_old\.json'):
        find_splits(tmp_path)


def test_several_data_sets_are_named(tmp_path):
    write(tmp_path, 'cells/annotations/train.json', 'cells/images')
    write(tmp_path, 'chess/train/_annotations.coco.json', 'chess/train')
    with pytest.raises(ConfigError, match=r'several data sets \(cells, chess\): use one of them, .*cells\.'):
        find_splits(tmp_path)
    assert find_splits(tmp_path / 'chess')['train'].images == tmp_path / 'chess' / 'train'


def test_missing_things_are_named(tmp_path):
    with pytest.raises(MissingFileError, match='nowhere'):
        find_splits(tmp_path / 'nowhere')
    (tmp_path / 'train.json').write_text(json.dumps(coco(['elsewhere.jpg'])))
    with pytest.raises(MissingFileError, match=r'elsewhere\.jpg.*--images'):
        find_splits(tmp_path)
    (tmp_path / 'train.json').write_text(json.dumps(coco([])))
    with pytest.raises(AnnotationError, match='names no image'):
        image_folder(tmp_path / 'train.json', tmp_path)


def test_a_split_is_cut_by_seed_and_keeps_objects_with_their_images():
    content = coco([f'{i}.jpg' for i in range(10)])
    rest, held = split_coco(content, 0.2, seed=3)
    assert len(held['images']) == 2 and len(rest['images']) == 8
    for part in (rest, held):
        assert {a['image_id'] for a in part['annotations']} == {i['id'] for i in part['images']}
    assert split_coco(content, 0.2, seed=3) == (rest, held)
    assert split_coco(content, 0.2, seed=4) != (rest, held)


def of_classes(kinds):
    """One image for each set of classes."""
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg') for i in range(len(kinds))],
        annotations=[dict(image_id=i, category_id=kind) for i, found in enumerate(kinds) for kind in found],
        categories=[dict(id=kind, name=f'class {kind}') for kind in sorted(set().union(*kinds))],
    )


@pytest.mark.parametrize('several', [False, True])
def test_a_class_with_few_images_is_on_both_sides_of_a_cut(several):
    for seed in range(200):
        rng = np.random.default_rng(seed)
        share, classes = rng.uniform(0.1, 0.5), int(rng.integers(1, 8))
        odds = rng.dirichlet([0.5] * classes)
        length = int(rng.integers(4, 80))
        kinds = [set(rng.choice(classes, rng.integers(1, 3) if several else 1, p=odds).tolist()) for _ in range(length)]
        content = of_classes(kinds)
        parts = split_coco(content, share, seed=seed)
        rest, held = ({image['id'] for image in part['images']} for part in parts)
        assert rest | held == set(range(length)) and len(held) == max(1, round(share * length))
        assert parts == split_coco(content, share, seed=seed)
        drawn = set(np.random.default_rng(seed).permutation(length)[: len(held)].tolist())
        covered = True
        for kind in set().union(*kinds):
            images = {i for i, found in enumerate(kinds) if kind in found}
            for side, before in ((held, drawn), (rest, set(range(length)) - drawn)):
                wanted = len(images) > 1 or side is rest
                covered &= bool(images & before) or not wanted
                if wanted and (images & before or min(map(len, (rest, held))) >= classes):
                    assert images & side, (seed, kind)
        assert not covered or held == drawn, 'a draw that has all classes stays'


def test_no_file_is_on_both_sides_of_a_cut():
    """Some tools write an entry of the image for each object."""
    content = coco([f'{i // 3}.jpg' for i in range(30)])
    rest, held = ({image['file_name'] for image in part['images']} for part in split_coco(content, 0.2, seed=0))
    assert not rest & held and (len(rest), len(held)) == (8, 2)


def test_categories_without_objects_are_left_out():
    assert [c['name'] for c in categories(coco(['a.jpg']))] == ['cat']


def test_ids_as_text_stay_with_their_images_and_categories():
    content = coco([f'{i}.jpg' for i in range(10)], ('cat', 'dog', 'cow'))
    for i, (image, annotation) in enumerate(zip(content['images'], content['annotations'])):
        image['id'] = str(i) if i % 2 else i
        annotation['image_id'] = f'{i}.0' if i % 3 else str(i)
        annotation['category_id'] = '1' if i % 2 else 3.0
    content['categories'][2]['id'] = '3'
    rest, held = split_coco(content, 0.3, seed=0)
    assert (
        [len(part['images']) for part in (rest, held)] == [len(part['annotations']) for part in (rest, held)] == [7, 3]
    )
    assert [category['name'] for category in categories(content)] == ['cat', 'cow']
    content['categories'].append(dict(id='rare', name='mixed'))  # ids of both kinds have an order
    assert [category['name'] for category in categories(content)] == ['cat', 'cow']


def test_other_splits_and_a_named_folder_do_not_stand_in_the_way(tmp_path):
    write(tmp_path, 'a/train.json', 'pictures')
    write(tmp_path, 'val_1.json', 'x')
    write(tmp_path, 'val_2.json', 'x')
    with pytest.raises(MissingFileError, match='name the image folder'):
        find_splits(tmp_path, ('train',))
    found = find_splits(tmp_path, ('train',), tmp_path / 'pictures')
    assert found['train'].images == tmp_path / 'pictures' and list(found) == ['train']


@pytest.mark.parametrize(
    'name, hint',
    [
        ('http://example.com/1.jpg', 'fetch the images'),
        ('sub\\1.jpg', 'write them with /'),
        ('\0', 'none of the folders'),
    ],
)
def test_file_names_that_are_no_files(tmp_path, name, hint):
    (tmp_path / 'train.json').write_text(json.dumps(coco([name])))
    with pytest.raises(MissingFileError, match=hint):
        find_splits(tmp_path)


def test_a_lost_first_image_does_not_hide_the_folder(tmp_path):
    write(tmp_path, 'train.json', 'images', count=4)
    (tmp_path / 'images/0.jpg').unlink()
    assert find_splits(tmp_path)['train'].images == tmp_path / 'images'


def test_images_of_other_splits_are_known_by_folders_and_annotations(tmp_path):
    def told(folder):
        return [path.removeprefix(f'{tmp_path}/') for path in held_out(tmp_path / folder)]

    write(tmp_path, 'flat/annotations/train.json', 'flat/images', names=['a.jpg', 'b.jpg'])
    write(tmp_path, 'flat/annotations/val.json', 'flat/images', names=['c.jpg', 'd.jpg'])
    assert told('flat/images') == told('flat') == ['flat/annotations/val.json']
    assert annotated_parent(tmp_path / 'flat' / 'images') == tmp_path / 'flat'
    assert annotated_parent(tmp_path / 'flat') is None
    for split in ('train', 'val'):  # of the same names
        write(tmp_path, f'coco/annotations/instances_{split}2017.json', f'coco/{split}2017')
        write(tmp_path, f'tool/{split}/_annotations.coco.json', f'tool/{split}')
    assert told('coco') == ['val2017'] and told('coco/train2017') == []
    assert told('tool') == ['val'] and told('tool/train') == []
    write(tmp_path, 'one/labels.json', 'one/images')
    (tmp_path / 'one' / 'val.json').write_text('{"images": [], "annotations": []}')
    (tmp_path / 'one' / 'test.json').write_text('{"images": [{"file_name": "gone.jpg"}], "annotations": [')
    assert told('one/images') == []


def test_annotations_of_other_images_are_called_that(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 'cells/train.json', 'cells', names=[f'blood_{i}.jpg' for i in range(4)])
    write(tmp_path, 'chess/own.json', 'chess', names=[f'board_{i}.jpg' for i in range(3)])
    (tmp_path / 'chess/own.json').unlink()
    cells, chess = f'{tmp_path}/cells/train.json', f'{tmp_path}/chess'
    lone = f'{tmp_path}/lone/train.json'
    Path(lone).parent.mkdir()
    Path(lone).write_bytes(Path(cells).read_bytes())
    out = f'--out {tmp_path}/out.json'
    for line in (
        f'pretrain --data {chess} --boxes {lone}',
        f'pretrain --data {chess} --boxes {lone} --images {chess}',
        f'finetune --data {chess} --train {lone} --val {lone}',
        f'finetune --data {chess} --images {chess} --train {lone} --val {lone}',
        f'compare --data {chess} --set data.train={lone} data.val={lone}',
        f'compare --data {chess} --set data.images={chess} data.train={lone} data.val={lone}',
        f'find-objects {chess} {out} --source import --annotations {lone}',
        f'find-objects {chess} {out} --source classic --workers 0 --truth {lone}',
        f'find-objects {chess} {out} --source classic --workers 0 --ann-file {lone}',
        f'verify --images {chess} --ann-file {lone}',
    ):
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        said = capsys.readouterr().err
        assert stop.value.code == 2, line
        assert 'none of the ' in said and f'is in or below {chess} (board_0.jpg, ...)' in said, (line, said)
        assert '(blood_0' in said and 'probably annotations of other images' in said and 'images/s' not in said, line


@pytest.mark.parametrize('there', ['0.JPG', '0.png'])
def test_images_of_another_ending_than_the_json_says_are_named(tmp_path, there):
    write(tmp_path, 'annotations/train.json', 'images')
    for i in range(2):
        (tmp_path / 'images' / f'{i}.jpg').rename(tmp_path / 'images' / there.replace('0', str(i)))
    with pytest.raises(
        MissingFileError, match=f'0.jpg, an image of .*: there is .*images/{there}, whose ending differs'
    ):
        find_splits(tmp_path)
