"""Files and habits that people have: each is read, or refused in one sentence that names the file and what to do."""

import errno
import io
import json
import logging
import os
import shlex
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image
from pycocotools.coco import COCO

from helpers import write_noise_coco
from odis_mm.cli.tasks import finetune_main, pretrain_main
from odis_mm.config import load_config
from odis_mm.datasets import ObjectDataset
from odis_mm.datasets.image_io import read_image, size_of
from odis_mm.datasets.layout import Split, read_coco
from odis_mm.datasets.survey import image_size
from odis_mm.objects import Classic, find_objects
from odis_mm.objects.annotations import imported_splits
from odis_mm.recipes import detector_config, pretraining_config
from odis_mm.tasks import finetune, predict, pretrain
from odis_mm.tasks.finetune import Finetuned, annotated_splits, default_steps, detector_splits
from odis_mm.tasks.predict import drawn_boxes, picture_names
from odis_mm.tasks.pretrain import imported_boxes
from odis_mm.utils.errors import AnnotationError, BadImageError, ConfigError, MissingFileError, UserError, explain
from odis_mm.utils.paths import find_detector, find_images


@contextmanager
def logged():
    """What is logged meanwhile."""
    logger, handler = MMLogger.get_current_instance(), logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    try:
        yield handler.stream
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(
    'start, kind',
    [
        (b'GIF89a', 'a GIF'),
        (b'\0\0\0\x18ftypheic', 'a HEIC image'),
        (b'\0\0\0\x18ftypmif1', 'a HEIC image'),
        (b'\0\0\0\x18ftypavif', 'an AVIF image'),
        (b'\0\0\0\x18ftypisom', 'a film'),
        (b'\0\0\0\x0cJXL \r\n', 'a JPEG XL image'),
        (b'%PDF-1.7', 'a PDF'),
        (b'\0' * 128 + b'DICM', 'a DICOM image'),
        (b'<!DOCTYPE html>', 'a web page'),
        (b'version https://git-lfs.github.com/spec/v1', 'a pointer of Git LFS'),
        (b'neither', 'damaged or no image'),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path, start, kind):
    path = tmp_path / 'a.jpg'  # a wrong ending is a habit, too
    path.write_bytes(start + b'\0' * 64)
    with pytest.raises(
        BadImageError, match=f'a.jpg cannot be decoded: it is {kind}.*(convert it to JPEG|fetch it again)'
    ):
        read_image(path)


@pytest.mark.parametrize(
    'kind', ['CMYK.jpg', 'P.png', 'PA.png', 'LA.png', '1.png', 'I;16.png', 'RGBA.webp', 'L.bmp', '1x1']
)
def test_kinds_that_are_read(tmp_path, kind):
    mode, _, suffix = kind.partition('.')
    path = tmp_path / f'a.{suffix or "png"}'
    grey = Image.fromarray((np.arange(64).reshape(8, 8) * 4).astype(np.uint8))
    if mode == '1x1':
        grey.resize((1, 1)).save(path)
    elif mode == 'I;16':
        Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)).save(path)
    elif mode in ('P', 'PA'):
        grey.convert('RGB').quantize(8).save(path, **(dict(transparency=0) if mode == 'PA' else {}))
    else:
        grey.convert(mode).save(path)
    image = read_image(path)
    side = 1 if mode == '1x1' else 8
    assert image.shape == (side, side, 3) and image.dtype == np.uint8 and size_of(path) == (side, side)


def test_an_animation_is_its_first_picture(tmp_path):
    frames = [Image.new('RGB', (8, 6), (value, 0, 0)) for value in (200, 20)]
    frames[0].save(tmp_path / 'a.png', save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / 'a.tif', save_all=True, append_images=frames[1:])
    for name in ('a.png', 'a.tif'):
        assert read_image(tmp_path / name)[0, 0, 0] == 200


def test_sizes_of_what_pillow_does_not_know(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(
        tmp_path / 'a.tif', np.zeros((6, 8, 5), np.uint16), photometric='minisblack', planarconfig='contig'
    )
    assert size_of(tmp_path / 'a.tif') == (6, 8)
    assert image_size(dict(img_path=str(tmp_path / 'a.tif'))) == (6, 8)
    assert image_size(dict(img_path=str(tmp_path / 'gone.tif'))) is None


@pytest.mark.parametrize('name', ['ENOTDIR', 'EEXIST', 'EROFS', 'ELOOP', 'ENAMETOOLONG', 'EISDIR', 'EACCES'])
def test_places_that_cannot_be_used_end_in_a_sentence(name):
    number = getattr(errno, name)
    assert explain(OSError(number, os.strerror(number), '/data/\udcff')) == f'/data/\\xff: {os.strerror(number)}.'


@pytest.mark.parametrize(
    'main, argv, sentence',
    [
        (pretrain_main, ['--batch', '0'], '--batch: must be 1 or more, got 0'),
        (pretrain_main, ['--seed', str(1 << 32)], 'seed must be 0 or more and below 2**32, got'),
        (pretrain_main, ['--size', '1'], '1 pixels cannot be cut into patches'),
        (pretrain_main, ['--hours', 'nan'], 'hours must be above 0'),
        (pretrain_main, ['--images', 'gone'], 'gone does not exist'),
        (finetune_main, ['--batch', '-3'], '--batch: must be 1 or more, got -3'),
        (finetune_main, ['--seed', '-1'], '--seed: must be 0 or more, got -1'),
        (finetune_main, ['--size', '7'], '--size: must be 16 or more, got 7'),
        (finetune_main, ['--steps', '1'], '--steps: must be 2 or more, got 1'),
    ],
)
def test_numbers_that_make_no_run(coco_folder, tmp_path, capsys, main, argv, sentence):
    with pytest.raises(SystemExit) as stop:
        main(['--data', str(coco_folder), '--work-dir', str(tmp_path / 'run'), *argv])
    assert stop.value.code == 2 and sentence in capsys.readouterr().err
    assert not list(tmp_path.rglob('*.pth'))


@pytest.mark.parametrize('main', [pretrain_main, finetune_main])
def test_places_that_are_none(coco_folder, tmp_path, capsys, main):
    (tmp_path / 'file').write_text('')
    for argv, sentence in (
        (['--data', str(coco_folder / 'val2017' / '0.png')], 'is a file where a folder of data is expected'),
        (['--data', str(coco_folder), '--work-dir', str(tmp_path / 'file' / 'run')], 'Not a directory'),
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2 and sentence in capsys.readouterr().err


def voc(root, count=4):
    (root / 'Annotations').mkdir(parents=True)
    (root / 'JPEGImages').mkdir()
    for i in range(count):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)).save(
            root / 'JPEGImages' / f'{i}.jpg'
        )
        corners = '<xmin>5</xmin><ymin>5</ymin><xmax>45</xmax><ymax>40</ymax>'
        (root / 'Annotations' / f'{i}.xml').write_text(
            f'<annotation><filename>{i}.jpg</filename><size><width>64</width><height>48</height></size>'
            f'<object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>'
        )
    return root


def test_pretraining_takes_the_boxes_of_other_tools(tmp_path):
    root = voc(tmp_path / 'voc')
    boxes = imported_boxes(root, None, tmp_path / 'run' / 'annotations')
    cfg, found = pretraining_config(root, boxes=boxes)
    assert cfg.model.type == 'ODIS' and (found.images, found.objects) == (4, 4)
    assert cfg.train_dataloader.dataset.data_prefix == str(root.resolve())
    plain = tmp_path / 'plain'
    plain.mkdir()
    (root / 'JPEGImages' / '0.jpg').rename(plain / '0.jpg')
    (plain / '0.txt').write_text('a caption of the picture')  # as captioning tools write, and YOLO names its labels
    assert imported_boxes(plain, None, tmp_path / 'x') is None
    assert pretraining_config(plain)[0].model.type == 'GTSA'


def test_pretraining_tells_how_many_images_other_tools_annotated(tmp_path, monkeypatch):
    said, root = [], voc(tmp_path / 'voc')
    # by its globals, as odis_mm.tasks.pretrain names the function
    monkeypatch.setitem(imported_boxes.__globals__, 'print_log', lambda line, **_: said.append(line))
    (root / 'Annotations' / '3.xml').unlink()
    imported_boxes(root, None, tmp_path / 'run')
    (line,) = said
    assert line.endswith('train.json; the images that it lists are used, 3 of 4 in the folder')


def test_splits_of_other_tools_keep_ids_apart(tmp_path):
    root = voc(tmp_path / 'voc')
    (root / 'ImageSets' / 'Main').mkdir(parents=True)
    (root / 'ImageSets' / 'Main' / 'val.txt').write_text('\ufeff1\n3\n', 'utf-8')
    splits = imported_splits(root, None, tmp_path / 'out')
    counts = {name: len(json.loads(split.ann_file.read_text())['annotations']) for name, split in splits.items()}
    assert counts == dict(train=2, val=2)
    with pytest.raises(AnnotationError):
        imported_splits(root / 'JPEGImages', None, tmp_path / 'none')


def test_exotic_jsons_of_a_detector_end_in_one_sentence(coco_folder, tmp_path):
    good = json.loads((coco_folder / 'annotations/instances_train2017.json').read_text())
    one = {**good, 'images': good['images'][:1], 'annotations': good['annotations'][:2]}
    without_id = {**good, 'images': [{k: v for k, v in image.items() if k != 'id'} for image in good['images']]}
    for content, error, words in (
        ('[' * 100000, AnnotationError, 'cannot be read as json'),
        ('{"images": null}', AnnotationError, 'has no list "images"'),
        ('\xff\xfe', AnnotationError, 'cannot be read as json'),
        ('', AnnotationError, 'cannot be read as json'),
        (one, ConfigError, '1 image, too few to hold some out'),
        (without_id, AnnotationError, r'images\[0\] is not a dict with an id'),
        ({**good, 'images': ['a.jpg', 'b.jpg']}, AnnotationError, 'names no image'),
        ({**good, 'annotations': [1]}, AnnotationError, r'annotations\[0\] is not a dict'),
    ):
        path = tmp_path / 'train.json'
        path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode('latin-1'))
        with pytest.raises(error, match=words):
            found = annotated_splits(coco_folder / 'train2017', path, None, None)
            detector_splits(coco_folder / 'train2017', found, None, tmp_path / 'work', seed=0)


def test_other_jsons_in_the_folder_do_not_matter(coco_folder, tmp_path):
    (tmp_path / 'images').symlink_to(coco_folder / 'train2017')
    (tmp_path / 'train.json').write_bytes((coco_folder / 'annotations/instances_train2017.json').read_bytes())
    (tmp_path / 'gone.json').symlink_to(tmp_path / 'nowhere.json')
    (tmp_path / 'package.json').write_text('{"name": "labels"}')
    (tmp_path / 'deep.json').write_text('[' * 100000)
    (tmp_path / 'dir.json').mkdir()
    found = annotated_splits(tmp_path, None, None, None)
    train, val, _ = detector_splits(tmp_path, found, None, tmp_path / 'work', seed=0)
    assert len(json.loads(val.ann_file.read_text())['images']) == 2 and train.images == tmp_path / 'images'


def test_a_class_of_the_name_of_its_data_set(tmp_path):
    """Roboflow's exports begin with a category of the data set's name, of which there is no object."""
    root = write_noise_coco(tmp_path / 'data', (('train', 4), ('val', 2)))
    for path in root.glob('annotations/*.json'):
        content = json.loads(path.read_text())
        content['categories'] = [dict(id=0, name='box', supercategory='none'), dict(id=1, name='box')]
        content['categories'] += [dict(id=2, name='lid'), dict(id=3, name='lid')]  # of neither is there an object
        path.write_text(json.dumps(content))
    splits = detector_splits(root, annotated_splits(root, None, None, None), None, tmp_path / 'work', seed=0)
    cfg = detector_config(*splits)
    assert cfg.model.roi_head.bbox_head.num_classes == 1
    for split in splits[:2]:
        assert COCO(str(split.ann_file)).getCatIds(catNms=['box']) == [1]  # as mmdet asks


def test_classes_without_a_name_are_told_before_a_detector_is_made(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 4), ('val', 2)))
    for path in root.glob('annotations/*.json'):
        content = json.loads(path.read_text())
        content['categories'] = [dict(id=1), dict(id=2)]
        path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match='name'):
        detector_config(*detector_splits(root, annotated_splits(root, None, None, None), None, tmp_path / 'w', seed=0))


def test_default_steps_are_ten_passes_with_any_detector():
    assert default_steps(1600) == 2000 and default_steps(1600, batch=4) == 4000
    assert default_steps(1600, detector='mask-rcnn_vits_fpn_1x_coco') == 8000  # of two images


def test_pictures_of_one_name_are_all_kept(tmp_path):
    for folder in ('a', 'b', '.hidden'):
        (tmp_path / folder).mkdir()
        Image.new('L', (4, 4)).save(tmp_path / folder / '1.png')
    (tmp_path / 'a' / 'loop').symlink_to(tmp_path)
    found = find_images([tmp_path, tmp_path / 'a' / '1.png'])
    assert [path.parent.name for path in found] == ['a', 'b']  # each once
    assert list(picture_names(found).values()) == ['1.png', '1_2.png']
    with pytest.raises(MissingFileError, match='looked for .jpg'):
        find_images([tmp_path / '.hidden' / '..' / 'empty'] if (tmp_path / 'empty').mkdir() is None else [])


def test_images_of_kinds_that_are_not_read_are_told(tmp_path, monkeypatch):
    class Told(Exception):
        pass

    def said(line, **_):
        raise Told(line)

    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / '1.HEIC').write_bytes(b'')
    with pytest.raises(MissingFileError, match=r'no image in .*1 files of kinds that are not read left out \(.heic\)'):
        find_images([tmp_path / 'photos'])
    Image.new('L', (4, 4)).save(tmp_path / 'photos' / '2.png')
    load_config('mask-rcnn_demo').dump(tmp_path / 'detector.py')
    torch.save({}, tmp_path / 'iter_1.pth')
    monkeypatch.setattr(sys.modules[predict.__module__], 'print_log', said)
    with pytest.raises(Told, match='photos: 1 images found, 1 files of kinds that are not read left out'):
        predict(tmp_path / 'detector.py', tmp_path / 'iter_1.pth', tmp_path / 'photos', tmp_path / 'out')


def test_what_a_run_tells_of_its_folder_is_not_told_before(tmp_path):
    for name in ('1.png', '2.png'):
        Image.new('L', (64, 64)).save(tmp_path / name)
    (tmp_path / '3.gif').write_bytes(b'')
    with logged() as said:
        assert imported_boxes(tmp_path, None, tmp_path / 'annotations') is None
        pretraining_config(tmp_path)
        assert not said.getvalue()
        ObjectDataset(data_prefix=tmp_path)
        assert said.getvalue().count('1 files of kinds that are not read left out (.gif)') == 1


def test_the_next_command_can_be_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my photos' / "Anna's").mkdir(parents=True)
    Image.new('L', (4, 4)).save(tmp_path / 'my photos' / "Anna's" / '1.png')
    content = dict(images=[dict(id=1, file_name='1.png')], annotations=[], categories=[])
    (tmp_path / 'my photos' / "Anna's" / 'train.json').write_text(json.dumps(content))
    monkeypatch.setattr('odis_mm.tasks.pretrain', lambda *args, **kwargs: 'my runs/epoch_1_backbone.pth')
    pretrain_main(['--data', "my photos/Anna's", '--work-dir', 'my runs'])
    line = capsys.readouterr().out.splitlines()[-1].removeprefix('next: ')
    words = ['odis-mm', 'finetune', '--data', "my photos/Anna's", '--init', 'my runs/epoch_1_backbone.pth']
    assert shlex.split(line) == words


def test_commands_in_messages_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_noise_coco(tmp_path / 'my photos')
    with pytest.raises(MissingFileError, match=f"so take --data '{tmp_path}/my photos'"):
        annotated_splits(Path('my photos/images'), None, None, None)
    notes = ' '.join(pretraining_config(Path('my photos/images'))[0].notes)
    assert f"--data '{tmp_path}/my photos' --boxes none" in notes
    Path('my photos/pretrain.py').touch()
    for run, file in (('my photos/a.pth', 'a.pth'), ('my photos/pretrain.py', 'epoch_N_backbone.pth')):
        with pytest.raises(ConfigError, match='is no detector yet: ') as caught:
            find_detector(run, None)
        words = shlex.split(str(caught.value).partition(' yet: ')[2].removesuffix('.'))
        assert words == ['odis-mm', 'finetune', '--data', 'ANNOTATED', '--init', f'my photos/{file}']


def test_the_last_lines_of_finetune_say_what_the_pictures_show(coco_folder, tmp_path, monkeypatch, capsys):
    content = dict(images=[dict(id=0), dict(id=1)], annotations=[dict(image_id=1, score=0.2512)])
    done = Finetuned(tmp_path / 'iter_3.pth', tmp_path / 'detector.py', {'bbox_mAP': 1.5}, drawn_boxes(content))
    monkeypatch.setattr('odis_mm.tasks.finetune', lambda *args, **kwargs: done)
    finetune_main(['--data', str(coco_folder)])
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == (
        f'pictures: {tmp_path}/predictions/vis, 0 of 1 box (score 0.3 or more) drawn in 2 pictures; 2 pictures have no '
        'box: the best score in them is 0.25, below the threshold of 0.3: lower it (odis-mm predict --threshold), or '
        'train the detector for longer'
    )
    content['annotations'].append(dict(image_id=0, score=0.5))
    assert '1 of 2 boxes (score 0.3 or more) drawn in 2 pictures; 1 picture has' in drawn_boxes(content)


def test_what_is_wrong_with_the_data_is_said_before_a_work_dir_in_use(coco_folder, tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'epoch_1.pth').write_bytes(b'')
    images, used = coco_folder / 'train2017', 'holds checkpoints of a run'
    for call, data, told in (
        (pretrain, tmp_path / 'gone', 'gone does not exist'),
        (finetune, images, 'holds no annotations to train a detector on'),
        (pretrain, images, used),
        (finetune, coco_folder, used),
    ):
        with pytest.raises(UserError, match=told):
            call(data, work_dir=run, steps=4)
    assert [path.name for path in run.iterdir()] == ['epoch_1.pth'], 'nothing was written'


def test_images_in_no_list_of_voc_are_in_no_split(tmp_path):
    root = voc(tmp_path / 'voc')
    lists = root / 'ImageSets' / 'Main'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('0.jpg\n1 -1\n2\n')
    (lists / 'test.txt').write_text('2\n')
    (lists / 'valid.txt').write_text('1\n')
    with logged() as said:
        splits = imported_splits(root, None, tmp_path / 'out')
    names = {name: [image['file_name'] for image in read_coco(s.ann_file)['images']] for name, s in splits.items()}
    assert names == {name: [f'JPEGImages/{i}.jpg'] for i, name in enumerate(('train', 'val', 'test'))}
    told = '1 annotated images are in none of its lists of a split and are left out (JPEGImages/3.jpg, ...)'
    assert told in said.getvalue()


def test_lists_of_voc_in_a_folder_below_name_its_splits(tmp_path):
    for year, name in (('VOC2007', 'train'), ('VOC2012', 'val')):  # of the same names of images
        voc(tmp_path / 'VOCdevkit' / year)
        lists = tmp_path / 'VOCdevkit' / year / 'ImageSets' / 'Main'
        lists.mkdir(parents=True)
        (lists / f'{name}.txt').write_text('0\n1\n2\n3\n')
    for data in ('.', 'VOCdevkit'):
        found = imported_splits(tmp_path / data, None, tmp_path / 'work_dirs')
        folders = {
            name: {Path(image['file_name']).parts[-3] for image in read_coco(split.ann_file)['images']}
            for name, split in found.items()
        }
        assert folders == {'train': {'VOC2007'}, 'val': {'VOC2012'}}


def test_images_without_a_label_file_are_told_of_by_finetune(tmp_path):
    data = tmp_path / 'photos'
    data.mkdir()
    for i in range(4):
        Image.new('L', (64, 64)).save(data / f'{i}.png')
        if i < 3:
            (data / f'{i}.txt').write_text('0 .5 .5 .5 .5\r\n', 'utf-8-sig')
    with logged() as said:
        splits = detector_splits(data, {}, None, tmp_path / 'run', seed=0)
    assert sum(len(read_coco(split.ann_file)['annotations']) for split in splits[:2]) == 3
    assert '1 of 4 images in' in said.getvalue() and 'left out' not in said.getvalue()
    (data / '3.txt').touch()
    with logged() as said:
        detector_splits(data, {}, None, tmp_path / 'run', seed=0)
    assert 'have no annotation' not in said.getvalue()


@pytest.mark.parametrize(
    'orientation, size, told',
    [(1, (64, 48), False), (3, (64, 48), True), (2, (64, 48), True), (6, (64, 48), False), (6, (64, 64), True)],
)
def test_photographs_whose_boxes_may_be_of_the_turned_picture_are_told_of(tmp_path, orientation, size, told):
    exif = Image.Exif()
    exif[274] = orientation
    for i in range(3):
        Image.new('RGB', size).save(tmp_path / f'{i}.jpg', exif=exif if i == 1 else b'')
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=size[0], height=size[1]) for i in range(3)],
        annotations=[dict(id=i + 1, image_id=i, category_id=1, bbox=[5, 5, 30, 30]) for i in range(3)],
        categories=[dict(id=1, name='cat')],
    )
    (tmp_path / 'train.json').write_text(json.dumps(content))
    split = Split(tmp_path / 'train.json', tmp_path)
    for cfg in (pretraining_config(tmp_path)[0], detector_config(split, split)):
        found = [note for note in cfg.notes if 'EXIF' in note]
        assert bool(found) == told and all('1 of 3 images' in note and '/1.jpg, ...' in note for note in found)


def test_images_that_the_boxes_do_not_list_are_told_of(tmp_path):
    for i in range(3):
        Image.new('RGB', (64, 64)).save(tmp_path / f'{i}.png')
    boxes = {f'{i}.png': [[5, 5, 40, 40]] for i in range(3)}
    for count, told in ((3, 'are used with their'), (2, 'are used, 2 of 3 in the folder, with their')):
        (tmp_path / 'boxes.json').write_text(json.dumps(dict(list(boxes.items())[:count])))
        notes = pretraining_config(tmp_path, boxes='boxes.json')[0].notes
        assert f'boxes: {tmp_path}/boxes.json; the images that it lists {told} boxes, not their classes' in notes


@pytest.mark.parametrize(
    'named, expected',
    [
        ('train: images/one\nval: images/two', dict(train='a/1 a/2', val='b/1')),
        ('path: .\ntrain: ../images/one\nvalid: [images/two]\ntest: ../nowhere', dict(train='a/1 a/2', val='b/1')),
        ('train: lists/t.txt\nval: images/two\ntest: images/three', dict(train='a/2', val='b/1', test='c/1')),
        ('train: images/two\nval: images/two', dict(train='b/1')),
        ('', dict(train='a/1 a/2 c/1 b/1')),
    ],
)
def test_splits_of_yolo_are_those_of_its_yaml(tmp_path, named, expected):
    names = {'a': 'one', 'b': 'two', 'c': 'three'}
    for name in ('a/1', 'a/2', 'b/1', 'c/1'):
        image = tmp_path / 'images' / names[name[0]] / f'{name[2]}.png'
        label = tmp_path / 'labels' / names[name[0]] / f'{name[2]}.txt'
        image.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (64, 64)).save(image)
        label.write_text('0 .5 .5 .5 .5')
    (tmp_path / 'lists').mkdir()
    (tmp_path / 'lists' / 't.txt').write_text('../images/one/2.png\r\n', newline='')
    (tmp_path / 'data.yaml').write_text(f'names: [x]\n{named}\n')
    with logged() as said:
        splits = imported_splits(tmp_path, None, tmp_path / 'out')
    short, found = {name: key for key, name in names.items()}, {}
    for name, split in splits.items():
        parts = [Path(image['file_name']).parts[-2:] for image in read_coco(split.ann_file)['images']]
        found[name] = ' '.join(f'{short[folder]}/{file[0]}' for folder, file in parts)
    assert found == expected
    listed = ' '.join(expected.values()).split()
    assert (f'{4 - len(listed)} annotated images are in none of its lists' in said.getvalue()) == (len(listed) < 4)


@pytest.mark.parametrize(
    'places, trained', [('train: images\nval: images/b', 'of_a'), ('train: images/b\nval: images', 'of_b')]
)
def test_validation_images_within_the_training_folder_of_yolo_are_not_trained_on(tmp_path, places, trained):
    _yolo(tmp_path, ['a', 'b'])
    (tmp_path / 'data.yaml').write_text(f'{places}\nnames: [x]\n')
    with logged() as said:
        splits = imported_splits(tmp_path, None, tmp_path / 'out')
    names = {name: [Path(i['file_name']).stem for i in read_coco(s.ann_file)['images']] for name, s in splits.items()}
    assert names == dict(train=[trained], val=['of_a' if trained == 'of_b' else 'of_b'])
    line = '1 images of its train split are of its val or test split, too, and are not trained on (images/b/of_b.png'
    assert (line in said.getvalue()) == (trained == 'of_a'), 'said where something was left out'


def _yolo(root, folders):
    for folder in folders:
        for kind in ('images', 'labels'):
            (root / kind / folder).mkdir(parents=True)
        Image.new('L', (64, 64)).save(root / 'images' / folder / f'of_{folder}.png')
        (root / 'labels' / folder / f'of_{folder}.txt').write_text('0 .5 .5 .5 .5')


@pytest.mark.parametrize('folder', ['eval', 'dev', 'validate', 'Evaluation', 'val'])
def test_folders_of_yolo_that_mean_validation_are_not_trained_on(tmp_path, folder):
    _yolo(tmp_path, ['train', folder])
    assert set(imported_splits(tmp_path, None, tmp_path / 'out')) == {'train', 'val'}


@pytest.mark.parametrize('place, data', [('.', 'set'), ('set', '.'), ('set', 'set')])
def test_the_nearest_yaml_of_yolo_names_classes_and_splits(tmp_path, place, data):
    _yolo(tmp_path / 'set', ['one', 'two'])
    places = 'train: set/images/one\nval: set/images/two' if place == '.' else 'train: images/one\nval: images/two'
    (tmp_path / place / 'data.yaml').write_text(f'{places}\nnames: [x]\n')
    splits = imported_splits(tmp_path / data, None, tmp_path / 'work_dirs')
    assert set(splits) == {'train', 'val'}
    assert read_coco(splits['train'].ann_file)['categories'] == [dict(id=1, name='x')]
    (tmp_path / place / 'other.yaml').write_text('names: [y]\n')
    with pytest.raises(AnnotationError, match='data.yaml and .*other.yaml name other classes each: put the one'):
        imported_splits(tmp_path / data, None, tmp_path / 'work_dirs')


def test_places_of_a_yaml_of_yolo_that_are_not_here_are_told(tmp_path):
    _yolo(tmp_path, ['one', 'two'])
    (tmp_path / 'data.yaml').write_text('train: images/one\nval: /elsewhere/two\ntest: none\nnames: [x]\n')
    with logged() as said:
        imported_splits(tmp_path, None, tmp_path / 'out')
    assert 'data.yaml: /elsewhere/two, its val split, is not there' in said.getvalue()
    assert 'its train' not in said.getvalue() and 'its test' not in said.getvalue()


def test_annotations_that_runs_wrote_are_not_those_of_the_data(tmp_path, monkeypatch):
    """They were read in place of YOLO's, so that later changes of these had no effect."""
    monkeypatch.chdir(tmp_path)
    _yolo(tmp_path, ['train', 'val'])
    for _ in range(2):
        splits = imported_splits('.', None, 'work_dirs/finetune/x/annotations')
    assert read_coco(splits['train'].ann_file)['info']['description'] == 'yolo annotations'


@pytest.mark.parametrize('linked', ['labels', 'annotations'])
def test_annotations_in_a_linked_folder_are_found(tmp_path, linked):
    data = tmp_path / 'data'
    _yolo(data, ['train', 'val'])
    if linked == 'annotations':
        splits = imported_splits(data, None, data / 'annotations')
        shutil.rmtree(data / 'labels')
        assert {name: splits[name].ann_file.name for name in splits} == dict(train='train.json', val='val.json')
    (data / linked).rename(tmp_path / 'elsewhere')
    (data / linked).symlink_to('../elsewhere')
    (data / 'z').symlink_to('.')
    (data / 'zz').symlink_to('../elsewhere')
    found = annotated_splits(data, None, None, None)
    train, val, _ = detector_splits(data, found, None, tmp_path / 'out', 0)
    assert [len(read_coco(split.ann_file)['images']) for split in (train, val)] == [1, 1]


@pytest.mark.parametrize('command', [pretrain_main, finetune_main])
def test_a_work_dir_among_the_data_is_refused(tmp_path, command, capsys):
    """Its pictures and annotations were taken for those of the data by the next command."""
    _yolo(tmp_path, ['train', 'val'])
    with pytest.raises(SystemExit):
        command(['--data', str(tmp_path), '--work-dir', str(tmp_path / 'run'), '--steps', '4'])
    assert f'{tmp_path}/run lies in {tmp_path}, and what runs write there' in capsys.readouterr().err
    with pytest.raises(ConfigError, match='would be taken for images and annotations'):
        (pretrain if command is pretrain_main else finetune)(tmp_path, work_dir=tmp_path / 'run', steps=4)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('folder, name', [('val', None), ('images', 'val'), ('images', 'instances_test2017')])
def test_data_without_training_annotations_is_refused(tmp_path, folder, name):
    """Of COCO style the detector was trained on the images that judge it; of YOLO the run ended in a KeyError."""
    data = tmp_path / 'data'
    _yolo(data, [folder])
    if name:
        (split,) = imported_splits(data, None, tmp_path / 'work_dirs').values()
        shutil.rmtree(data / 'labels')
        (data / 'annotations').mkdir()
        split.ann_file.rename(data / 'annotations' / f'{name}.json')
    told = f'{name}.json is of a validation or test split' if name else 'holds annotations of val images alone'
    with pytest.raises(MissingFileError, match=told):
        finetune(data, work_dir=tmp_path / 'run', steps=4)
    with logged() as said:
        assert imported_boxes(data, None, tmp_path / 'run') is None
    assert told in said.getvalue()


def test_predictions_in_the_folder_of_the_data_are_no_annotations(tmp_path):
    """A detector was trained on them, of YOLO in place of the labels."""
    _yolo(tmp_path, ['train', 'val'])
    (tmp_path / 'found' / 'vis').mkdir(parents=True)
    Image.new('L', (64, 64)).save(tmp_path / 'found' / 'vis' / 'of_val.png')
    kept = imported_splits(tmp_path, None, tmp_path / 'work_dirs')['val'].ann_file.read_text()
    (tmp_path / 'found' / 'predictions.json').write_text(kept)
    assert [path.parent.name for path in find_images([tmp_path])] == ['train', 'val']
    found = annotated_splits(tmp_path, None, None, None)
    train, val, _ = detector_splits(tmp_path, found, None, tmp_path / 'work_dirs' / 'run', 0)
    names = [image['file_name'] for split in (train, val) for image in read_coco(split.ann_file)['images']]
    assert names == ['images/train/of_train.png', 'images/val/of_val.png']


def test_found_objects_in_the_place_of_annotations_are_told_of(tmp_path):
    _yolo(tmp_path, ['train', 'val'])
    find_objects(tmp_path / 'images', tmp_path / 'objects.json', Classic(), workers=0, say=lambda line: None)
    with logged() as said:
        annotated_splits(tmp_path, None, None, None)
    assert 'objects.json holds objects found by odis-mm find-objects, which are no annotations' in said.getvalue()
