"""Annotations of odd habits in a comparison: numbers as text, ids of other splits, files that are no images."""

import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from helpers import write_noise_coco
from odis_mm.detection.checks import look
from odis_mm.recipes import pretraining
from odis_mm.utils.errors import AnnotationError, BadImageError, ConfigError, StageError
from odis_mm.workflows import compare, stages, stats
from odis_mm.workflows.compare import Comparison
from odis_mm.workflows.data import prepare
from odis_mm.workflows.plan import Data, Plan, Start, Step, Tuning


def prepared(tmp_path, changed=None, name='w', **data):
    root = tmp_path / 'data'
    if not root.is_dir():
        write_noise_coco(root, (('train', 6), ('val', 4)))
    if changed is not None:
        path = root / 'annotations' / 'train.json'
        content = json.loads(path.read_text())
        changed(content)
        path.write_text(json.dumps(content))
    return prepare(Plan(Data(root=str(root), **data), (Start('random'),)), tmp_path, tmp_path / name)


def as_text(content):
    for image in content['images']:
        image['id'] = str(image['id'])
    for annotation in content['annotations']:
        annotation.update(image_id=f' {annotation["image_id"]}.0', category_id='1', iscrowd='0', area=' 5e2')
        annotation['bbox'] = [str(value) for value in annotation['bbox']]
    content['categories'][0]['id'] = '1'


def test_numbers_as_text_are_the_numbers(tmp_path):
    plain = json.loads(prepared(tmp_path).train.read_text())
    text = json.loads(prepared(tmp_path, as_text, 'w2').train.read_text())
    assert {annotation.pop('area') for annotation in text['annotations']} == {500.0}
    assert all(annotation.pop('area') for annotation in plain['annotations'])
    assert text == plain and len(text['annotations']) == 18


@pytest.mark.parametrize('nothing', [None, ''])
def test_an_area_that_is_not_given_is_that_of_the_box(tmp_path, nothing):
    def without(content):
        for annotation in content['annotations']:
            annotation['area'] = nothing

    for annotation in json.loads(prepared(tmp_path, without).train.read_text())['annotations']:
        assert annotation['area'] == annotation['bbox'][2] * annotation['bbox'][3] > 0


@pytest.mark.parametrize(
    'change', [dict(bbox=[200, 5, 20, 20]), dict(bbox=[5, 5, -4, 20]), dict(bbox=[float('nan'), 5, 4, 4])]
)
def test_boxes_that_detectors_leave_out_are_no_misses(change, tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    path = root / 'annotations' / 'val.json'
    content = json.loads(path.read_text())
    content['annotations'][0].update(change)
    path.write_text(json.dumps(content))
    found = prepared(tmp_path)
    assert any('val.json: 1 objects are left out, whose box is no box, or outside of' in note for note in found.notes)
    objects = [dict(a, score=0.9) for a in json.loads(found.val.read_text())['annotations']]
    assert len(objects) == 11 and stats.average_precision(stats.match(found.val, objects))[0] == pytest.approx(100)


@pytest.mark.parametrize('area', [-1, '-1', float('nan')])
def test_objects_with_a_wrong_area_are_counted(area, tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    path = root / 'annotations' / 'val.json'
    content = json.loads(path.read_text())
    for annotation in content['annotations']:
        annotation['area'] = area
    path.write_text(json.dumps(content))
    assert sum(c.objects.sum() for c in stats.match(prepared(tmp_path).val, []).categories) == 12


@pytest.mark.parametrize('change', [dict(iscrowd=1), dict(bbox=[5, 5, 0.5, 20])])
def test_labelled_images_have_an_object_that_is_learned(change, tmp_path):
    def changed(content):
        first = content['images'][0]['id']
        for annotation in content['annotations']:
            if annotation['image_id'] != first:
                annotation.update(change)

    found = prepared(tmp_path, changed)
    assert len(json.loads(found.subsets[100.0, 0].read_text())['images']) == 1


def test_a_training_set_of_which_nothing_is_left_is_refused(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    (root / 'annotations' / 'val.json').write_bytes((root / 'annotations' / 'train.json').read_bytes())
    with pytest.raises(ConfigError, match=r'train\.json: no training image .* name other images to evaluate'):
        prepared(tmp_path, duplicates='drop')


@pytest.mark.parametrize('ignore', [1, True, '1', 0, '0'])
def test_objects_to_ignore_are_no_misses(ignore, tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    path = root / 'annotations' / 'val.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['ignore'] = ignore
    path.write_text(json.dumps(content))
    val = prepared(tmp_path).val
    found = [dict(a, score=0.9) for a in json.loads(val.read_text())['annotations'][1:]]
    ap = stats.average_precision(stats.match(val, found))[0]
    assert (ap == pytest.approx(100)) == (ignore in (1, '1'))


def test_images_numbered_by_numbers_and_text_are_numbered_as_detectors_do(tmp_path):
    def mixed(content):
        first = content['images'][0]['id']
        for entry, key in ((content['images'], 'id'), (content['annotations'], 'image_id')):
            for one in entry:
                one[key] = f'0{first}' if one[key] == first else one[key]

        content['annotations'].append({**content['annotations'][0], 'id': 10**6, 'image_id': 'nowhere'})

    file = prepared(tmp_path, mixed).train
    content = json.loads(file.read_text())
    assert [image['id'] for image in content['images']] == list(range(1, 7))
    assert look(str(file), '/').content is None, 'a detector would number the images anew'
    assert {annotation['image_id'] for annotation in content['annotations']} <= set(range(1, 7))


def test_classes_that_are_numbered_otherwise_are_refused(tmp_path):
    def renamed(content):
        content['categories'][0]['name'] = 'lid'

    with pytest.raises(ConfigError, match="val.json: category 1 is 'box', and category 1 is 'lid' in .*train.json"):
        prepared(tmp_path, renamed)


def test_a_class_of_two_numbers_is_refused(tmp_path):
    """Else its objects would be left out of AP."""

    def numbered(content):
        content['categories'] = [dict(id=0, name='lid'), dict(id=7, name='box')]
        for i, annotation in enumerate(content['annotations']):
            annotation['category_id'] = 7 * (i % 2)

    with pytest.raises(ConfigError, match="val.json: category 1 is 'box', and category 7 is 'box' in .*train.json"):
        prepared(tmp_path, numbered)


def test_classes_that_no_training_object_has_are_told(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    path = root / 'annotations' / 'val.json'
    content = json.loads(path.read_text())
    for annotation in content['annotations'][:3]:
        annotation['category_id'] = 2
    path.write_text(json.dumps(content))
    found = prepared(tmp_path)
    (note,) = [note for note in found.notes if 'not evaluated' in note]
    assert note.startswith('3 objects of the val split are of classes without a training object (unused)')
    assert {a['category_id'] for a in json.loads(found.val.read_text())['annotations']} == {1}
    for annotation in content['annotations']:
        annotation['category_id'] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"the val split has no object of the classes \['box'\]"):
        prepared(tmp_path, name='w2')


@pytest.mark.parametrize('annotations', [None, []])
def test_a_split_without_annotations_is_refused(annotations, tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    path = root / 'annotations' / 'val.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'annotations': annotations}))
    with pytest.raises(ConfigError, match='the val split has no object of the classes'):
        prepared(tmp_path)


def test_one_image_is_too_few_to_evaluate(tmp_path):
    write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 1)))
    with pytest.raises(ConfigError, match=r'val\.json: the val split has one image, .* evaluate two or more'):
        prepared(tmp_path)


def test_what_is_no_annotation_is_named(tmp_path):
    with pytest.raises(AnnotationError, match=r'annotations\[2\] is not a dict with'):
        prepared(tmp_path, lambda content: content['annotations'][2].update(bbox=[1, 2, 'x', 4]))


@pytest.mark.parametrize('part, key', [('categories', 'name'), ('annotations', 'area')])
def test_a_class_without_a_name_and_an_area_of_letters_are_refused(part, key, tmp_path):
    with pytest.raises(AnnotationError, match=r'train\.json: a category without a name, or an area that is no number'):
        prepared(tmp_path, lambda content: content[part][0].pop(key) and content['annotations'][0].update(area='big'))


@pytest.mark.parametrize('change', [dict(category_id=None), dict(category_id=77), dict(image_id=77)])
def test_objects_of_no_class_or_image_are_told(change, tmp_path):
    found = prepared(tmp_path, lambda content: content['annotations'][0].update(change))
    assert any('train.json: 1 objects are left out, whose class or image is not listed' in note for note in found.notes)
    assert len(json.loads(found.train.read_text())['annotations']) == 17


def test_a_missing_image_is_named_with_what_to_do(tmp_path):
    def changed(content):
        content['images'][1]['file_name'] = 'gone.png'

    with pytest.raises(ConfigError, match='1 images of the train split .*/gone.png: fetch them again, or remove them'):
        prepared(tmp_path, changed)


def test_unlabelled_files_that_cannot_be_read_are_named(tmp_path):
    more = tmp_path / 'more'
    (more / '.hidden').mkdir(parents=True)
    Image.effect_noise((40, 30), 90).save(more / 'a.png')
    (more / '.hidden' / 'b.png').write_bytes(b'no image')
    assert prepared(tmp_path, unlabelled=str(more)).images['unlabelled'] == 1
    (more / 'd.heic').write_bytes(b'')
    notes = prepared(tmp_path, name='w1', unlabelled=str(more)).notes
    assert any('more: 1 images found, 1 files of kinds that are not read left out (.heic)' in note for note in notes)
    (more / 'c.png').write_bytes(b'GIF89a')
    with pytest.raises((ConfigError, BadImageError), match=r'c\.png'):
        prepared(tmp_path, name='w2', unlabelled=str(more))


def test_images_that_no_annotation_lists_are_counted(tmp_path):
    found = prepared(tmp_path)
    assert not any('are not used' in note for note in found.notes)
    (images,) = {Path(i['file_name']).parent for i in json.loads(found.val.read_text())['images']}
    for name in ('x1.png', 'x2.png'):
        Image.effect_noise((40, 30), 90).save(images / name)
    (note,) = [note for note in prepared(tmp_path, name='w2').notes if 'are not used' in note]
    assert note.startswith('2 images in') and 'x1.png, ...' in note
    further = prepared(tmp_path, name='w3', unlabelled=str(images), duplicates='drop')
    assert further.images['unlabelled'] == 2 and not any('are not used' in note for note in further.notes)


def test_training_images_among_the_unlabelled_are_listed_once(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    train = json.loads((root / 'annotations' / 'train.json').read_text())['images']
    more = tmp_path / 'more'
    more.mkdir()
    for i, image in enumerate(train):
        (more / f'copy_{i}.png').write_bytes((root / 'images' / image['file_name']).read_bytes())
    (more / 'link.png').symlink_to((root / 'images' / train[0]['file_name']).resolve())
    Image.effect_noise((40, 30), 90).save(more / 'new.png')
    (more / 'newer.png').symlink_to(more / 'new.png')
    found = prepared(tmp_path, unlabelled=str(more))
    assert found.images['unlabelled'] == 1
    assert any(note.startswith('7 unlabelled images are training images, too') for note in found.notes)
    for folder in found.pretraining.values():
        names = [Path(image['file_name']).name for image in json.loads((folder / 'train.json').read_text())['images']]
        assert names == [*(Path(image['file_name']).name for image in train), 'new.png']


def test_images_of_one_name_are_counted_as_several_of_a_trained_scene(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    train, path = json.loads((root / 'annotations' / 'train.json').read_text()), root / 'annotations' / 'val.json'
    val = json.loads(path.read_text())
    for i in range(2):
        image = Image.open(root / 'images' / train['images'][i]['file_name'])
        colour = [value + (80 if value < 128 else -80) for value in image.getpixel((45, 39))]
        image.paste(tuple(colour), (42, 36, 48, 42))
        val['images'][i]['file_name'] = f'camera{i}/0001.png'
        (root / 'images' / f'camera{i}').mkdir()
        image.save(root / 'images' / f'camera{i}' / '0001.png')
    path.write_text(json.dumps(val))
    assert len(prepared(tmp_path).scenes['val']) == 2


def test_every_copy_of_an_evaluated_image_is_left_out(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    path = root / 'annotations' / 'train.json'
    content, val = json.loads(path.read_text()), json.loads((root / 'annotations' / 'val.json').read_text())
    copied = Image.open(root / 'images' / val['images'][0]['file_name'])
    for i, name in enumerate(('same.png', 'again.png', 'coded.png')):
        copied.save(root / 'images' / name, compress_level=1 if name == 'coded.png' else 6)
        content['images'].append(dict(id=100 + i, file_name=name, width=copied.width, height=copied.height))
        content['annotations'].append(dict(content['annotations'][0], id=100 + i, image_id=100 + i))
    path.write_text(json.dumps(content))
    found = prepared(tmp_path, duplicates='drop')
    names = {Path(image['file_name']).name for image in json.loads(found.train.read_text())['images']}
    assert len(names) == 6 and not names & {'same.png', 'again.png', 'coded.png'}
    assert {Path(trained).name for _, trained, _ in found.duplicates} == {'same.png', 'again.png', 'coded.png'}


def test_an_evaluated_image_that_is_there_twice_counts_once(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    val = json.loads((root / 'annotations' / 'val.json').read_text())['images'][0]
    content = json.loads((root / 'annotations' / 'train.json').read_text())
    content['images'].append({**val, 'id': 100})
    (root / 'annotations' / 'train.json').write_text(json.dumps(content))
    more = tmp_path / 'more'
    more.mkdir()
    (more / 'copy.png').write_bytes((root / 'images' / val['file_name']).read_bytes())
    with pytest.raises(ConfigError, match='^1 images that are evaluated'):
        prepared(tmp_path, unlabelled=str(more))
    found = prepared(tmp_path, unlabelled=str(more), duplicates='allow').duplicates
    assert len(found) == 2 and len({evaluated for evaluated, *_ in found}) == 1


def test_a_yolo_folder_is_imported_split_by_split(tmp_path):
    root = tmp_path / 'yolo'
    for split, count in (('train', 3), ('val', 2)):
        for kind in ('images', 'labels'):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.effect_noise((40 + i, 30), 90).save(root / 'images' / split / f'{split}{i}.png')
            (root / 'labels' / split / f'{split}{i}.txt').write_text('0 0.5 0.5 0.4 0.4\n')
    (root / 'data.yaml').write_text('nc: 1\nnames: [cell]\n')
    found = prepare(Plan(Data(root=str(root)), (Start('random'),)), tmp_path, tmp_path / 'w')
    assert (found.images['train'], found.images['val']) == (3, 2) and not found.notes
    assert json.loads(found.train.read_text())['categories'] == [dict(id=1, name='cell')]
    for file in root.rglob('*.txt'):
        file.unlink()
    with pytest.raises(ConfigError, match='holds no annotations of training images'):
        prepare(Plan(Data(root=str(root)), (Start('random'),)), tmp_path, tmp_path / 'w2')


@pytest.mark.parametrize('trials', [0, 2])
def test_trials_on_the_demo_set_are_chosen_by_images_that_the_table_does_not_use(trials, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = Plan(Data(demo=8, held_out=0.25), (Start('random'),), tuning=Tuning(trials=trials))
    images = prepare(plan, tmp_path, tmp_path / 'w').images
    assert (images['train'], images['val'], images.get('test')) == ((6, 2, 200) if trials else (8, 200, None))


def test_test_images_by_which_trials_are_chosen_are_told(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4)))
    (root / 'annotations' / 'test.json').write_bytes((root / 'annotations' / 'val.json').read_bytes())
    for trials in (0, 2):
        plan = Plan(Data(root=str(root)), (Start('random'),), tuning=Tuning(trials=trials))
        notes = prepare(plan, tmp_path, tmp_path / f'w{trials}').notes
        assert any('4 test images are among the val images' in note for note in notes) == bool(trials)


def test_orientations_that_sizes_do_not_tell_are_noted(tmp_path):
    root, exif = write_noise_coco(tmp_path / 'data', (('train', 6), ('val', 4))), Image.Exif()
    exif[274] = 3
    with Image.open(root / 'images' / '8.png') as image:
        image.save(root / 'images' / '8.png', exif=exif)
    found = [note for note in prepared(tmp_path).notes if 'EXIF' in note]
    assert len(found) == 1 and '1 of 4 images' in found[0]


def test_a_work_dir_among_the_data_is_refused(tmp_path):
    """Its annotations were found beside those of the data, so that nothing could be continued."""
    with pytest.raises(ConfigError, match='data/cmp lies in .*data, and what runs write there would be taken'):
        prepared(tmp_path, name='data/cmp')
    assert prepared(tmp_path, name='data/work_dirs/cmp').images['train'] == 6
    named = dict(train='annotations/train.json', val='annotations/val.json')
    for _ in range(2):
        assert prepared(tmp_path, name='data/cmp', **named).images['train'] == 6


class Seen:
    """In place of a worker: what the first command of a stage is."""

    def command(self, arguments, folder, cpu=False):
        self.cfg, self.cpu = Config.fromfile(arguments[1]), cpu
        raise InterruptedError


def first_command(stage, folder):
    seen = Seen()
    with pytest.raises(InterruptedError):
        stage.work(seen, folder, {})
    return seen


def compared(tmp_path, jobs=1, **options):
    plan = Plan(
        Data(root=str(tmp_path / 'data')),
        (Start('random'), Start('ours', (Step(recipe='odis_small', options=options),))),
    )
    return Comparison(plan, prepared(tmp_path), stages.Stages(tmp_path, jobs=jobs))


@pytest.mark.parametrize('options, workers', [({}, 4), ({'train_dataloader.num_workers': 7}, 7)])
def test_stages_beside_one_another_share_the_cores_that_prepare_images(tmp_path, monkeypatch, options, workers):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for module in (pretraining, stages):
        monkeypatch.setattr(module, 'cores', lambda: 16)
    stage = next(iter(compared(tmp_path, jobs=4, **options).pretrainings.values()))
    assert first_command(stage, tmp_path / 'stage').cfg.train_dataloader.num_workers == workers


def test_detectors_without_operators_for_the_gpu_train_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, 'detectors_lack_gpu', lambda: True)
    assert not compared(tmp_path).detectors_on_cpu and not compared(tmp_path).notes  # no GPU
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    comparison = compared(tmp_path)
    assert any('all detectors train on the CPU' in note for note in comparison.notes)
    for found, cpu in ((comparison.runs, True), (comparison.pretrainings, False)):
        seen = first_command(next(iter(found.values())), tmp_path / 'stage')
        assert seen.cpu == cpu and seen.cfg.train_dataloader.num_workers == 0


def test_a_command_may_not_see_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, 'PROGRAM', [sys.executable, '-c'])
    shown = "import os; print(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))"
    for cpu, expected in ((False, "'3'"), (True, "''")):
        stages.Worker((), {'CUDA_VISIBLE_DEVICES': '3'}).command([shown], tmp_path, cpu=cpu)
        assert (tmp_path / 'log.txt').read_text().splitlines()[-1] == expected


def test_a_command_that_is_killed_is_told_as_lack_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, 'PROGRAM', [sys.executable, '-c'])
    with pytest.raises(StageError, match='was killed, as the system does where memory runs out: lower --jobs'):
        stages.Worker((), {}).command(['import os; os.kill(os.getpid(), 9)'], tmp_path)
