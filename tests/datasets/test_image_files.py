"""Folders, lists and names of images: loops, hidden folders, byte order marks, bytes that are no UTF-8."""

import json
import logging
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from helpers import environment
from odis_mm.cli.verify import verify_main
from odis_mm.datasets import ObjectDataset, files
from odis_mm.engine.hooks import BadImageHook
from odis_mm.evaluation.knn import LabelledImages
from odis_mm.utils.errors import AnnotationError, ConfigError, run_command


def image(path, value=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode('.png', np.full((24, 32, 3), value, np.uint8))[1].tobytes())


@pytest.fixture
def folder(tmp_path):
    """Four images in two folders, a hidden copy of each folder, a link to the parent, to a sibling and to nothing."""
    root = tmp_path / 'data'
    for name in (
        'a/1.png',
        'a/2.png',
        'b/3.png',
        'b/4.png',
        '.ipynb_checkpoints/1.png',
        'a/.cache/deep/1.png',
        '.5.png',
        'work_dirs/pretrain/a/views_1.png',
    ):
        image(root / name)
    (root / 'a/loop').symlink_to(root)
    (root / 'b/again').symlink_to(root / 'a')
    (root / 'gone').symlink_to(root / 'nowhere')
    return root


def test_each_real_folder_is_visited_once_and_hidden_ones_are_not(folder, monkeypatch):
    said = []
    monkeypatch.setattr(files, 'print_log', lambda line, **_: said.append(line))
    found = files.list_images(folder)
    assert [os.path.relpath(name, folder) for name in found] == ['a/1.png', 'a/2.png', 'b/3.png', 'b/4.png']
    (line,) = said
    assert '5 folders left out' in line and '.ipynb_checkpoints' in line
    assert len(ObjectDataset(folder)) == 4
    assert files.walk_images(folder / '.ipynb_checkpoints')[0] == [str(folder / '.ipynb_checkpoints/1.png')], 'named'


def test_images_of_kinds_that_are_not_read_are_counted(folder, monkeypatch):
    said = []
    monkeypatch.setattr(files, 'print_log', lambda line, **_: said.append(line))
    for name in ('a/1.HEIC', 'a/2.heic', 'b/3.jfif', 'b/notes.txt', 'b/.4.gif'):
        (folder / name).write_bytes(b'')
    assert len(files.list_images(folder)) == 4
    assert '4 images found, 3 files of kinds that are not read left out (.heic, .jfif)' in said[-1]


def test_a_link_to_another_place_is_followed(folder, tmp_path):
    (tmp_path / 'view').mkdir()
    (tmp_path / 'view/link').symlink_to(folder / 'b')
    (tmp_path / 'view/file.png').symlink_to(folder / 'a/1.png')
    assert len(files.list_images(tmp_path / 'view')) == 3 + 2, 'the files of b, its link to a, and a linked file'


def test_links_to_one_image_are_one_image(folder, monkeypatch):
    said = []
    monkeypatch.setattr(files, 'print_log', lambda line, **_: said.append(line))
    (folder / 'train').mkdir()
    for name, target in (('1.png', folder / 'a' / '1.png'), ('2.png', '../a/2.png')):
        (folder / 'train' / name).symlink_to(target)
    (folder / 'elsewhere.png').symlink_to(folder / '.5.png')
    names = [os.path.relpath(info['img_path'], folder) for info in ObjectDataset(folder)]
    assert names == ['elsewhere.png', 'a/1.png', 'a/2.png', 'b/3.png', 'b/4.png']
    assert said[-1].endswith(': 2 links to images that are there under another name left out')


def test_hidden_folders_are_no_classes(folder):
    assert LabelledImages(str(folder), size=16).classes == ['a', 'b']


def test_lists_with_byte_order_marks_and_bytes_of_other_codes(tmp_path):
    odd = os.fsdecode(b'caf\xe9.png')
    for name in ('a.png', 'ü.png', odd):
        image(tmp_path / name)
    for code in ('utf-8', 'utf-8-sig', 'utf-16'):
        (tmp_path / 'list.txt').write_text('a.png\r\nü.png\r\n', code)
        assert len(ObjectDataset(tmp_path, 'list.txt', pipeline=[dict(type='LoadObjectImage')])) == 2
        assert [os.path.basename(item['img_path']) for item in ObjectDataset(tmp_path, 'list.txt')] == [
            'a.png',
            'ü.png',
        ]
    (tmp_path / 'list.txt').write_bytes(b'a.png\ncaf\xe9.png\n')
    item = ObjectDataset(tmp_path, 'list.txt', pipeline=[dict(type='LoadObjectImage')])[1]
    assert item['img'].shape == (24, 32, 3) and item['img_path'].endswith(odd)


def test_the_first_data_set_prints_nothing_of_other_packages(tmp_path):
    image(tmp_path / 'a.png')
    code = 'from odis_mm.datasets import ObjectDataset as D; D({!r}, lazy_init=True, pipeline=[dict(type={!r})])'
    code = code.format(str(tmp_path), 'LoadObjectImage')
    run = subprocess.run([sys.executable, '-c', code], env=environment(), capture_output=True, text=True)
    assert run.returncode == 0 and not run.stdout, run.stdout + run.stderr[-500:]


def test_a_list_needs_no_locale(tmp_path):
    image(tmp_path / 'ü.png')
    (tmp_path / 'list.txt').write_text('ü.png\n', 'utf-8')
    code = 'from odis_mm.datasets.files import read_list; import sys; print(ascii(read_list(*sys.argv[1:])))'
    (tmp_path / 'odis-mm').write_text(code)  # so named, it imports no more than a command does
    run = subprocess.run(
        [sys.executable, tmp_path / 'odis-mm', tmp_path / 'list.txt', tmp_path],
        env=environment(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0'),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stdout.strip().endswith(r"['\xfc.png']"), run.stderr[-500:]


@pytest.mark.parametrize(
    'name, content, needle',
    [
        ('one.xml', '<annotation><object/></annotation>', 'describes one image .Pascal VOC'),
        ('data.yaml', 'train: images', 'description of a YOLO data set'),
        ('boxes.csv', 'a.png,1,2,3,4', 'a table'),
        ('train.txt', '000001\n000002\n', "begins with '000001', which is no image path but a number or name"),
        ('train.txt', '000001 1\n000002 -1\n', 'several words'),
        ('labels.txt', '0 0.5 0.5 0.1 0.1\n', 'several words'),
    ],
)
def test_other_kinds_of_annotations_are_told(tmp_path, name, content, needle):
    image(tmp_path / 'a.png')
    (tmp_path / name).write_text(content)
    with pytest.raises(AnnotationError, match=needle + '.*COCO style first'):
        ObjectDataset(tmp_path, name)


def test_a_folder_as_annotations_is_told(tmp_path):
    image(tmp_path / 'img/a.png')
    with pytest.raises(AnnotationError, match='is a folder; name a .json'):
        ObjectDataset(tmp_path, 'img')


def test_the_labels_of_yolo_beside_a_list_are_mentioned(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(files, 'print_log', lambda line, **_: said.append(line))
    image(tmp_path / 'images/train/a.png')
    (tmp_path / 'labels/train').mkdir(parents=True)
    (tmp_path / 'train.txt').write_text('./images/train/a.png\n')
    assert len(ObjectDataset(tmp_path, 'train.txt')) == 1
    assert any('labels beside the images' in line for line in said)


@pytest.mark.parametrize('as_json', [False, True])
def test_names_that_are_no_utf8_survive_the_checker(tmp_path, capsys, as_json):
    odd, broken = os.fsdecode(b'caf\xe9.png'), os.fsdecode(b'br\xff.png')
    image(tmp_path / 'img/a.png')
    image(tmp_path / 'img' / odd)
    (tmp_path / 'img' / broken).write_bytes(b'nothing')
    options = ['--data', str(tmp_path), '--images', 'img', '--workers', '2', '--report', str(tmp_path / 'report.json')]
    if as_json:
        boxes = {name: [[1, 1, 9, 9]] for name in ('a.png', odd, broken)}
        (tmp_path / 'ann.json').write_text(json.dumps(boxes))
        options += ['--ann-file', 'ann.json']
    clean = tmp_path / f'clean.{"json" if as_json else "txt"}'
    with pytest.raises(SystemExit) as stop:
        verify_main([*options, '--clean', str(clean)])
    assert stop.value.code == 1 and r'br\xff.png cannot be decoded' in capsys.readouterr().out
    kept = ObjectDataset(tmp_path, clean.name, 'img', pipeline=[dict(type='LoadObjectImage')])
    assert sorted(os.path.basename(item['img_path']) for item in kept) == ['a.png', odd]


def test_names_that_are_no_utf8_can_be_logged(tmp_path, capsys):
    image(tmp_path / 'a.png')
    (tmp_path / os.fsdecode(b'br\xff.png')).write_bytes(b'nothing')
    data = ObjectDataset(tmp_path, pipeline=[dict(type='LoadObjectImage')], max_bad_share=0.6)
    list(data)

    class Runner:
        world_size, iter = 1, 0
        train_dataloader = type('Loader', (), dict(dataset=data))
        logger = logging.Logger('strict')

    handler = logging.FileHandler(tmp_path / 'log.txt', encoding='utf-8')
    Runner.logger.addHandler(handler)
    BadImageHook(interval=1).look(Runner)
    handler.close()
    assert r'br\xff.png cannot be decoded' in (tmp_path / 'log.txt').read_text()
    assert 'UnicodeEncodeError' not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command(lambda: ObjectDataset(tmp_path / os.fsdecode(b'no\xff')))
    assert r'no\xff' in capsys.readouterr().err


def test_no_image_at_all(tmp_path):
    image(tmp_path / '.hidden/a.png')
    with pytest.raises(ConfigError, match='no image in or below'):
        files.list_images(tmp_path)
