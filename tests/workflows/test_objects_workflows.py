"""The chain that finds its own objects, and the plan that compares boxes: the commands typed, the files written."""

import json
import os
from pathlib import Path

import pytest
from mmpretrain.registry import DATASETS

from helpers import write_noise_coco
from odis_mm import apis
from odis_mm.config import load_config, parse_options
from odis_mm.objects import recall_of
from odis_mm.objects.recall import read_result
from odis_mm.recipes import pretraining_config
from odis_mm.utils.errors import ConfigError
from odis_mm.workflows import stages
from odis_mm.workflows.bootstrap import bootstrap
from odis_mm.workflows.data import prepare
from odis_mm.workflows.plan import load_plan
from odis_mm.workflows.stages import exports
from odis_mm.workflows.worth import DEGRADED, SAME_ON_DEMO, VARIANTS, measure_boxes, worth


def test_chain_types_the_documented_commands(tmp_path, monkeypatch):
    typed = []

    def command(self, arguments, folder):
        words = list(map(str, arguments))
        typed.append(words)
        if words[0] == 'pretrain':
            run = folder / 'run'
            run.mkdir(exist_ok=True)
            (run / 'epoch_2_backbone.pth').touch()
        return {}

    monkeypatch.setattr(stages.Worker, 'command', command)
    images, settings = str(tmp_path), dict(teacher='alfm', steps=5, rounds=2)
    work = tmp_path / 'work_dirs' / 'bootstrap'
    export = bootstrap(images, str(work), **settings)
    assert [words[0] for words in typed] == ['pretrain', 'find-objects', 'pretrain', 'find-objects', 'pretrain']
    first, search, second, again, last = typed
    assert first[first.index('--boxes') + 1] == 'none' and first[first.index('--method') + 1] == 'alfm'
    assert search[search.index('--checkpoint') + 1].startswith(first[first.index('--work-dir') + 1])
    assert second[second.index('--boxes') + 1] == search[search.index('--out') + 1]
    assert again[again.index('--checkpoint') + 1].startswith(second[second.index('--work-dir') + 1])
    assert str(export).startswith(last[last.index('--work-dir') + 1])
    typed.clear()
    assert bootstrap(images, str(work), **settings) == export and not typed
    (work / 'views_1.png').touch()
    assert bootstrap(images, str(work), **settings) == export and not typed
    (tmp_path / 'new.jpg').touch()
    assert bootstrap(images, str(work), **settings) != export
    assert len(typed) == 5, 'with another image all of it is done anew'
    for text in (b'1 2', b'2 1'):  # of one size
        typed.clear()
        (tmp_path / os.fsdecode(b'gr\xfcn.bmp')).write_bytes(text)
        bootstrap(images, str(work), **settings)
        assert len(typed) == 5, text
    with pytest.raises(ConfigError, match='would be taken for images'):
        bootstrap(images, str(tmp_path / 'work'), **settings)
    with pytest.raises(ConfigError, match='--work-dir /dev/null is a file: name a folder'):
        bootstrap(images, '/dev/null', **settings)


def test_rows_differ_in_boxes_alone(tmp_path, monkeypatch):
    """The commands that are typed, the measures that stand in the table, and the plan for detectors."""
    typed = []

    def command(self, arguments, folder):
        words = list(map(str, arguments))
        typed.append(words)
        run = Path(words[words.index('--work-dir') + 1])
        run.mkdir(parents=True)
        (run / 'epoch_2_backbone.pth').touch()
        return {}

    def measure(export, root, random=False):
        return dict.fromkeys(('object_token', 'box_pool', 'mask_miou'), 10.0 if random else len(typed))

    monkeypatch.setattr(stages.Worker, 'command', command)
    monkeypatch.setattr('odis_mm.workflows.worth.measure_boxes', measure)
    settings = dict(
        data_root=str(tmp_path / 'demo'),
        train_images=12,
        iterations=4,
        seeds=2,
        finetune_iters=2,
        teacher=[],
        workers=0,
    )
    text = worth(str(tmp_path / 'worth'), **settings)
    rows = ['annotated boxes', *DEGRADED, 'classic', *VARIANTS]
    assert len(typed) == 2 * len(rows)
    for number, words in enumerate(typed):
        seed, row = divmod(number, len(rows))
        options = parse_options(words[words.index('--cfg-options') + 1 :])
        cfg = load_config(words[1], options)  # every key is one that something reads
        assert options['randomness.seed'] == options['train_dataloader.dataset.seed'] == seed
        assert cfg.train_cfg.max_iters == 4
        content = read_result(Path(cfg.train_dataloader.dataset.data_root, cfg.train_dataloader.dataset.ann_file))
        assert len(content['images']) == 12
        assert (rows[row] in VARIANTS) == any('pipeline' in key or 'model' in key for key in options)
    assert '| random weights |  |  | 10.0 |' in text and f'({len(rows)}.0, {2 * len(rows)}.0)' in text
    plan, _ = load_plan(tmp_path / 'worth' / 'plan.yaml')
    planned = [row for row in rows if row not in SAME_ON_DEMO]
    assert [start.name for start in plan.starts] == ['random weights', *planned] and plan.reference == 'annotated boxes'
    recipes = {}
    for start in plan.starts[1:]:
        (step,) = start.steps
        cfg = load_config(step.recipe, step.options)
        recipes[start.name] = json.dumps([cfg.model, cfg.train_dataloader.dataset], sort_keys=True)
    assert len(set(recipes.values())) == len(recipes)  # no two rows are the same run
    root = next(tmp_path.glob('demo*'))
    truth = json.loads((root / 'annotations' / 'instances_train2017.json').read_text())
    jittered = read_result(tmp_path / 'worth' / 'boxes_at_iou_0_7.json')
    for entry in jittered['annotations']:
        entry['score'] = 1.0
    assert recall_of(jittered, truth)['AR@100'] == pytest.approx(45, abs=6)  # thresholds 0.5 to 0.7: 4 or 5 of 10
    done = len(typed)
    assert worth(str(tmp_path / 'worth'), **settings) == text and len(typed) == done
    with pytest.raises(ConfigError, match='--teacher takes NAME=FILE'):
        worth(str(tmp_path / 'other'), **{**settings, 'teacher': ['x.pth']})
    with pytest.raises(ConfigError, match='worth.md is a file: name a folder to write'):
        worth(str(tmp_path / 'worth' / 'worth.md'), **{**settings, 'data_root': str(tmp_path / 'none')})
    assert not (tmp_path / 'none').exists(), 'before the demo set is rendered'


def test_own_data_give_boxes_and_a_plan(tmp_path, coco_folder):
    """Of the training images alone, though others lie in the same folder."""
    images = tmp_path / 'data' / 'images'
    images.mkdir(parents=True)
    for part in ('train', 'val'):
        for path in (coco_folder / f'{part}2017').iterdir():
            (images / f'{part}_{path.name}').symlink_to(path)
        content = json.loads((coco_folder / f'annotations/instances_{part}2017.json').read_text())
        content['images'] = [{**image, 'file_name': f'{part}_{image["file_name"]}'} for image in content['images']]
        content['annotations'] = [{**a, 'area': a['bbox'][2] * a['bbox'][3]} for a in content['annotations']]
        (tmp_path / 'data' / f'{part}.json').write_text(json.dumps(content))
    truth = read_result(tmp_path / 'data' / 'train.json')
    settings = dict(data_root='', train_images=0, iterations=4, seeds=2, finetune_iters=2, teacher=[], workers=0)
    text = worth(str(tmp_path / 'worth'), data=str(tmp_path / 'data'), **settings)
    rows = [*DEGRADED, 'classic']
    assert [line.split(' | ')[0] for line in text.splitlines()[2:-2]] == [f'| {row}' for row in rows]
    plan, _ = load_plan(tmp_path / 'worth' / 'plan.yaml')
    assert [start.name for start in plan.starts] == ['random weights', 'annotated boxes', *rows, *VARIANTS]
    for start in plan.starts[2 : 2 + len(rows)]:
        (step,) = start.steps
        cfg, _ = pretraining_config(tmp_path / 'data', recipe=step.recipe, steps=4, options=step.options)
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        names = {Path(dataset.get_data_info(i)['img_path']).name for i in range(len(dataset))}
        assert names <= {image['file_name'] for image in truth['images']} and len(names) > 4
    with pytest.raises(ConfigError, match='no COCO-style json'):
        worth(str(tmp_path / 'other'), data=str(images), **settings)


def test_own_data_are_understood_as_by_the_comparison(tmp_path):
    """Numbers that are text, images without sizes, an object of no image."""
    settings = dict(data_root='', train_images=0, iterations=4, seeds=1, finetune_iters=2, teacher=[], workers=0)
    tables = []
    for name in ('plain', 'odd'):
        path = write_noise_coco(tmp_path / name) / 'annotations' / 'train.json'
        if name == 'odd':
            content = json.loads(path.read_text())
            content['images'] = [dict(id=image['id'], file_name=image['file_name']) for image in content['images']]
            for a in content['annotations']:
                a.update(image_id=str(a['image_id']), bbox=[str(value) for value in a['bbox']])
            content['annotations'].append(dict(id=999, image_id=999, category_id=1, bbox=[1, 1, 9, 9]))
            path.write_text(json.dumps(content))
        text = worth(str(tmp_path / f'worth_{name}'), data=str(tmp_path / name), **settings)
        tables.append(text.partition('\n\n')[0])
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 2 + len(DEGRADED) + 1


def test_boxes_of_own_data_are_of_no_image_that_is_held_out(tmp_path, coco_folder):
    data = tmp_path / 'data'
    data.mkdir()
    content = json.loads((coco_folder / 'annotations/instances_train2017.json').read_text())
    (data / 'train.json').write_text(json.dumps(content))
    for path in (coco_folder / 'train2017').iterdir():
        (data / path.name).symlink_to(path)
    settings = dict(data_root='', train_images=0, iterations=4, seeds=1, finetune_iters=2, teacher=[], workers=0)
    worth(str(tmp_path / 'worth'), data=str(data), **settings)
    plan, folder = load_plan(tmp_path / 'worth' / 'plan.yaml')
    val = json.loads(prepare(plan, folder, tmp_path / 'compare').val.read_text())
    held = {Path(image['file_name']).name for image in val['images']}
    for start in plan.starts[2 : 3 + len(DEGRADED)]:
        named = read_result(start.steps[0].options['train_dataloader.dataset.ann_file'])['images']
        assert named and not held & {image['file_name'] for image in named}


def test_short_recipe_takes_a_step(tmp_path, demo):
    options = {'train_dataloader.dataset.data_root': str(demo), 'train_dataloader.batch_size': 4}
    options |= {'train_cfg.max_iters': 4, 'default_hooks.views': None}
    runner = apis.train(load_config('odis_demo_short', options), work_dir=str(tmp_path))
    assert runner.iter == 4
    measures = measure_boxes(exports(tmp_path)[-1], demo)
    assert set(measures) >= {'object_token', 'box_pool', 'mask_miou'}
