"""The whole engine with training replaced: what is run, what is kept, what the report says."""

import base64
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from PIL import Image

from helpers import write_noise_coco
from odis_mm.config import load_config
from odis_mm.engine.resume import find_checkpoint
from odis_mm.transfer import save_backbone
from odis_mm.utils.environment import MACHINE
from odis_mm.utils.errors import ConfigError, StageError
from odis_mm.utils.files import atomic_write_text
from odis_mm.workflows import leaks, stats
from odis_mm.workflows import run as module
from odis_mm.workflows.data import label_subsets, prepare
from odis_mm.workflows.outcome import NOT_NOTED
from odis_mm.workflows.plan import Data, Plan, Start, parse_plan
from odis_mm.workflows.report import Section, to_html, to_markdown
from odis_mm.workflows.run import compare, compare_data
from odis_mm.workflows.stages import Worker

NOISE = {'good': 1.0, 'bad': 9.0, 'random': 5.0}  # pixels that a detector's boxes are off


class FakeTraining:
    """In place of ``Worker.command``: detectors whose boxes are as far off as their start says, and pretrainings of no
    time."""

    def __init__(self, export, weights):
        self.export, self.weights = export, weights
        self.calls, self.fail_at, self.machine = [], None, 'a machine'

    def __call__(self, worker, arguments, folder):
        words = [str(word) for word in arguments]
        self.calls.append(folder.parent.name if folder.name.startswith('step') else folder.name)
        if self.fail_at == len(self.calls):
            raise StageError('killed')
        if words[0] == 'regions':
            name = words[1]
            value = 60.0 - NOISE['good' if 'good' in name else 'bad']
            found = dict(
                metrics=dict(box_pool=value, object_auc=value + 10),
                random=dict(box_pool=50.0 if '/stages/' in name else 40.0, object_auc=60.0),  # a file of another shape
            )
            (folder / 'measures.json').write_text(json.dumps(found))
            return dict(seconds=1.0, memory_mb=100.0)
        cfg, run = load_config(words[1]), folder / 'run'
        (run / 'x' / 'vis_data').mkdir(parents=True, exist_ok=True)
        (run / '2026').mkdir(exist_ok=True)
        (run / '2026' / '2026.log').write_text(f'11/27 {MACHINE}{self.machine}\n')
        (self.detector if cfg.train_cfg.type == 'IterBasedTrainLoop' else self.pretraining)(cfg, run)
        return dict(seconds=2.0, memory_mb=100.0)

    def pretraining(self, cfg, run):
        records = [dict(loss=1.0 / (i + 1), time=0.01, step=i + 1, loss_x=0.5) for i in range(12)]
        (run / 'x' / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
        interval = cfg.default_hooks.checkpoint.interval
        loader = cfg.train_dataloader
        images = len(json.loads(Path(loader.dataset.ann_file).read_text())['images'])
        per_epoch = int(images * loader.dataset.get('data_fraction', 1)) // loader.batch_size
        last = -(-cfg.train_cfg.max_iters // per_epoch)
        for epoch in {*range(interval, last + 1, interval), last}:
            told = dict(num_heads=2, iteration=min(epoch * per_epoch, cfg.train_cfg.max_iters))
            save_backbone(run / f'epoch_{epoch}_backbone.pth', self.weights, told)

    def detector(self, cfg, run):
        name = str((cfg.model.backbone.get('init_cfg') or {}).get('checkpoint'))
        start = 'good' if 'good' in name else 'bad' if 'bad' in name else 'random'
        labels = len(json.loads(open(cfg.train_dataloader.dataset.ann_file).read())['images'])
        rng = np.random.default_rng((cfg.randomness.seed, labels))
        truth = json.loads(open(cfg.val_evaluator.ann_file).read())
        known = list(cfg.train_dataloader.dataset.metainfo.category_ids)  # mmdet knows, and judges, no other classes
        truth['annotations'] = [a for a in truth['annotations'] if a['category_id'] in known]
        truth['categories'] = [c for c in truth['categories'] if c['id'] in known]
        off = NOISE[start] * (1 + 3 / labels) / (2 if cfg.optim_wrapper.optimizer.lr < 1e-3 else 1)
        off /= 20 if cfg.train_cfg.max_iters >= 80 else 1
        found = [
            dict(
                image_id=a['image_id'],
                category_id=a['category_id'],
                bbox=(np.array(a['bbox']) + rng.normal(0, off / 2, 4)).clip(1).tolist(),
                score=float(rng.uniform(0.3, 1)),
            )
            for a in truth['annotations']
        ]
        prefix = cfg.val_evaluator.get('outfile_prefix')
        if prefix:
            open(f'{prefix}.bbox.json', 'w').write(json.dumps(found))
        (run / 'judged.json').write_text(json.dumps(truth))
        ap = stats.average_precision(stats.match(run / 'judged.json', found))[0] / 100
        records = [dict(loss=1.0, time=0.01, step=i + 1) for i in range(12)]
        records.append({'coco/bbox_mAP': ap, 'coco/bbox_mAP_50': ap, 'time': 0.02, 'step': 12})
        (run / 'x' / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))


@pytest.fixture
def training(tmp_path, monkeypatch):
    init_default_scope('mmpretrain')
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    vit = MODELS.build(dict(type='VisionTransformer', arch=arch, img_size=32, patch_size=8))
    export = tmp_path / 'export.pth'
    save_backbone(export, vit.state_dict(), dict(num_heads=2))
    fake = FakeTraining(export, vit.state_dict())
    monkeypatch.setattr(Worker, 'command', lambda worker, arguments, folder, cpu=False: fake(worker, arguments, folder))
    return fake


def plan_file(tmp_path, **changes):
    content = dict(
        name='test',
        data=dict(root=str(tmp_path / 'data')),
        starts={'random weights': {}, 'good': dict(recipe='alfm_demo')},
        detector=dict(size=64, iterations=20),
        pretraining=dict(iterations=20),
        labels=[25, 100],
    )
    path = tmp_path / 'plan.yaml'
    path.write_text(json.dumps({**content, **changes}))  # json is YAML
    return path


def numbers(work_dir):
    """The report without what the clock says."""
    content = json.loads((work_dir / 'report.json').read_text())
    del content['costs'], content['hardware']
    return content


def test_a_plan_from_start_to_report(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    work = tmp_path / 'work'
    starts = {'random weights': {}, 'good': dict(recipe='alfm_demo'), 'bad': dict(recipe='gtsa_demo')}
    plan = plan_file(tmp_path, starts=starts, pretraining=dict(iterations=20, lengths=[0.5]))
    outcome = compare(plan, work_dir=work, jobs=2, command='odis-mm compare plan.yaml')
    # 3 speeds, 4 pretrainings, (2 + 4 + 4) detectors at two amounts of labels, 8 on the way, 8 measures
    assert len(training.calls) == len(set(training.calls)) == 3 + 4 + 20 + 8 + 8
    report = numbers(work)
    assert report['verdict'].startswith('Yes: good is ') and 'Below random weights: bad' in report['verdict']
    assert report['recommendation'].startswith('Start from good.')
    assert [table['images'] for table in report['tables']] == [6, 24]
    for table in outcome.tables:
        assert table.row('good').gap.verdict == 'above' and table.row('bad').gap.verdict == 'below'
        assert table.row('good').runs.value.shape == (2, 2) and table.row('random weights').runs.value.shape == (1, 2)
    assert report['correlations']['box_pool'][0] > 0.5 and report['correlations']['box_pool'][1] == 9
    html = (work / 'report.html').read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)  # nothing is fetched
    assert html.count('data:image/jpeg') == 4 * 4 and html.count('<svg') == 3 and 'odis-mm compare plan.yaml' in html
    markdown = (work / 'report.md').read_text()
    assert '| 6 (25 %) | good |' in markdown and '![Box AP against the number' in markdown
    assert (work / 'figures' / 'labels.svg').is_file()
    del training.calls[:]
    compare(plan, work_dir=work, jobs=1)
    assert not training.calls and numbers(work) == report


def test_a_checkpoint_on_the_way_stands_where_it_was_written(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    seeds, budget = dict(pretraining=1, detector=1), dict(iterations=13, lengths=[0.5])
    starts = {'random weights': {}, 'good': dict(recipe='alfm_demo', options={'train_dataloader.batch_size': 4})}
    plan = plan_file(tmp_path, starts=starts, seeds=seeds, pretraining=budget, labels=[100], measures=False, pictures=0)
    outcome = compare(plan, work_dir=tmp_path / 'w', jobs=1)
    (config,) = (tmp_path / 'w' / 'stages').glob('pretraining_good_p0-*/config.py')
    assert Config.fromfile(config).default_hooks.checkpoint.interval == 1  # of 6 iterations
    assert [(share, at) for share, at, *_ in outcome.lengths['good']] == [(0.5, 6), (1.0, 13)]
    budget['iterations'] = 6  # an epoch: there is no other checkpoint than that of the end
    plan = plan_file(tmp_path, starts=starts, seeds=seeds, pretraining=budget, labels=[100], measures=False, pictures=0)
    points = compare(plan, work_dir=tmp_path / 'w', jobs=1).lengths['good']
    assert [point[1:3] for point in points] == [(6, points[1][2])] * 2


def test_a_checkpoint_on_the_way_is_found_where_options_make_epochs_shorter(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    options = {'train_dataloader.batch_size': 4, 'train_dataloader.dataset.data_fraction': 0.5}
    few = dict(seeds=dict(pretraining=1, detector=1), labels=[100], measures=False, pictures=0)
    starts = {'random weights': {}, 'good': dict(recipe='alfm_demo', options=options)}
    plan = plan_file(tmp_path, starts=starts, pretraining=dict(iterations=13, lengths=[0.5]), **few)
    compare(plan, work_dir=tmp_path / 'w', jobs=1)
    (result,) = (tmp_path / 'w' / 'stages').glob('pretraining_good_p0-*/result.json')
    found = json.loads(result.read_text())
    assert found['checkpoints'] == {'0.5': 'run/epoch_2_backbone.pth'} and found['reached'] == {'0.5': 6}


def test_lengths_may_be_less_than_a_hundredth_apart(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    budget, seeds = dict(iterations=20, lengths=[0.12, 0.125, 0.5]), dict(pretraining=1, detector=1)
    compare(plan_file(tmp_path, pretraining=budget, seeds=seeds, labels=[100], pictures=0), work_dir=tmp_path, jobs=1)
    on_the_way = {name.partition('_at')[2].partition('-')[0] for name in training.calls if '_at' in name}
    assert on_the_way == {'12', '12p5', '50'}


def test_stages_of_several_machines_are_told(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    work, few = tmp_path / 'work', dict(measures=False, pictures=0, labels=[100])
    starts = {'random weights': {}, 'bad': dict(recipe='gtsa_demo')}
    compare(plan_file(tmp_path, starts=starts, **few), work_dir=work, jobs=1)
    told = (work / 'report.md').read_text()
    assert '; a machine; ' in told and 'Note: not all' not in told
    training.machine = 'a GPU'
    starts['good'] = dict(recipe='alfm_demo')
    compare(plan_file(tmp_path, starts=starts, **few), work_dir=work, jobs=1)
    assert numbers(work)['ran_on'] == {'a machine': ['random weights', 'bad'], 'a GPU': ['good']}
    assert 'versions: a machine (random weights, bad); a GPU (good).' in (work / 'report.md').read_text()
    for path in work.glob('stages/detector_*/result.json'):  # as before trainings noted it
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != 'ran_on'}))
    compare(plan_file(tmp_path, starts=starts, **few), work_dir=work, jobs=1)
    assert f'{NOT_NOTED} (random weights, bad, good)' in (work / 'report.md').read_text()


def test_a_changed_plan_runs_only_what_it_touches(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    work = tmp_path / 'work'
    compare(plan_file(tmp_path, measures=False), work_dir=work, jobs=1)
    first = {path: path.read_bytes() for path in work.rglob('result.json')}
    before = (work / 'report.json').read_text()
    drawn = (work / 'figures' / 'differences.svg').read_bytes()
    os.utime(work / 'report.json', (1e9, 1e9))
    del training.calls[:]
    compare(plan_file(tmp_path, measures=False, labels=[25, 50, 100]), work_dir=work, jobs=1)
    assert len(training.calls) == 6 and all('_50pct_' in name for name in training.calls)
    assert all(path.read_bytes() == content for path, content in first.items())
    assert before in [path.read_text() for path in work.glob('report_*.json')]  # the former report is kept
    (work / 'report.md').rename(work / 'moved.md')  # by hand
    (kept,) = work.glob('report_*.md')
    named = re.findall(r'\]\((.*differences.svg)\)', kept.read_text())
    assert [(work / name).read_bytes() for name in named] == [drawn], 'and so are its figures'
    assert (work / 'figures' / 'differences.svg').read_bytes() != drawn
    del training.calls[:]
    second = (work / 'report.json').read_text()
    os.utime(work / 'report.json', (1e9, 1e9))  # of the same second as the first
    detector = dict(size=64, iterations=30)
    compare(plan_file(tmp_path, measures=False, labels=[25], detector=detector), work_dir=work, jobs=1)
    assert {before, second} <= {path.read_text() for path in work.glob('report_*.json')}
    assert len(training.calls) == 6 and all(name.startswith('detector_') for name in training.calls)  # no speed again


def test_the_reference_is_trained_for_longer(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    work = tmp_path / 'work'
    compare(plan_file(tmp_path, measures=False), work_dir=work, jobs=1)
    before = numbers(work)
    assert before['longer'] is None and before['verdict'].startswith('Yes: good is ')
    del training.calls[:]
    detector = dict(size=64, iterations=20, longer=4)
    compare(plan_file(tmp_path, measures=False, detector=detector), work_dir=work, jobs=1)
    (name,) = training.calls  # nothing else depends on it
    assert name.startswith('detector_random_weights_100pct_d0_x4')
    after = numbers(work)
    assert after['tables'] == before['tables'] and after['longer'] > after['tables'][-1]['rows'][1]['mean']
    reached = f'trained 4 times as long, random weights reaches {after["longer"]:.1f} with 24.'
    assert after['verdict'] == f'{before["verdict"]} Mind: {reached}'
    assert '--set detector.iterations=80' in (work / 'report.md').read_text()
    with pytest.raises(ConfigError, match='detector.longer must be 0, or 2 or more'):
        compare(plan_file(tmp_path, detector=dict(longer=1)), work_dir=work)


def test_each_step_of_a_chain_starts_from_the_one_before(tmp_path, training, monkeypatch):
    write_noise_coco(tmp_path / 'data')
    seen, pretraining = [], training.pretraining
    monkeypatch.setattr(training, 'pretraining', lambda cfg, run: (seen.append(cfg.model), pretraining(cfg, run)))
    chain = dict(chain=[dict(recipe='alfm_demo'), dict(recipe='gtsa_demo')])
    starts, seeds = {'random weights': {}, 'good': chain}, dict(pretraining=1, detector=1)
    plan = plan_file(tmp_path, starts=starts, seeds=seeds, labels=[25], measures=False, pictures=0)
    compare(plan, work_dir=tmp_path / 'w', jobs=1)
    first, second = (model for model in seen[-2:])
    assert (first.type, second.type) == ('ALFM', 'GTSA') and 'init_cfg' not in first.backbone
    assert '/step0/run/epoch_' in second.backbone.init_cfg.checkpoint
    assert second.backbone.arch.embed_dims == second.neck.in_channels == 32, 'as the file has it'


def test_killed_again_and_again_it_gives_the_same_table(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    plan = plan_file(tmp_path, labels=[25], measures=False, pictures=1, seeds=dict(pretraining=1, detector=2))
    compare(plan, work_dir=tmp_path / 'whole', jobs=1)
    rng = np.random.default_rng(0)
    for _ in range(3):
        training.calls, training.fail_at = [], int(rng.integers(1, 3))
        with pytest.raises(StageError, match='killed'):
            compare(plan, work_dir=tmp_path / 'broken', jobs=1)
    training.fail_at = None
    compare(plan, work_dir=tmp_path / 'broken', jobs=1)
    assert numbers(tmp_path / 'broken') == numbers(tmp_path / 'whole')


def test_killed_before_the_result_of_a_pretraining_is_written_it_goes_on(tmp_path, training, monkeypatch):
    write_noise_coco(tmp_path / 'data')
    pretraining, engine = training.pretraining, sys.modules[module.Stages.__module__]

    def resumed(cfg, run):
        find_checkpoint(str(run))  # as --resume auto does
        pretraining(cfg, run)
        (run / 'epoch_9.pth').write_bytes(b'')
        (run / 'last_checkpoint').write_text(str(run / 'epoch_9.pth'))

    def killed(path, text):
        if path.name == 'result.json' and 'pretraining_' in str(path):
            raise StageError('killed')
        atomic_write_text(path, text)

    monkeypatch.setattr(training, 'pretraining', resumed)
    seeds = dict(pretraining=1, detector=1)
    plan = plan_file(tmp_path, labels=[100], measures=False, pictures=0, seeds=seeds)
    with monkeypatch.context() as patch:
        patch.setattr(engine, 'atomic_write_text', killed)
        with pytest.raises(StageError, match='killed'):
            compare(plan, work_dir=tmp_path / 'w', jobs=1)
    assert compare(plan, work_dir=tmp_path / 'w', jobs=1)


def test_a_planted_leak_is_refused_dropped_or_allowed(tmp_path, training):
    root = write_noise_coco(tmp_path / 'data')
    more = tmp_path / 'more'
    more.mkdir()
    Image.open(root / 'images' / '30.png').convert('RGB').resize((80, 60)).save(more / 'holiday.jpg', quality=50)
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(more / 'other.png')
    data = dict(root=str(root), unlabelled=str(more))
    with pytest.raises(
        leaks.LeakError, match=r'^1 images that are evaluated .*30\.png = .*holiday\.jpg \(the same picture'
    ):
        compare(plan_file(tmp_path, data=data), work_dir=tmp_path / 'w')
    assert not training.calls
    dropped = prepare(
        parse_plan(json.loads(plan_file(tmp_path, data={**data, 'duplicates': 'drop'}).read_text())),
        tmp_path,
        tmp_path / 'd',
    )
    names = [i['file_name'] for i in json.loads((dropped.pretraining[True] / 'train.json').read_text())['images']]
    assert not any('holiday' in name for name in names) and any('other' in name for name in names)
    allowed = prepare(
        parse_plan(json.loads(plan_file(tmp_path, data={**data, 'duplicates': 'allow'}).read_text())),
        tmp_path,
        tmp_path / 'a',
    )
    assert len(allowed.duplicates) == 1


def test_nothing_evaluated_is_in_any_training_file(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 12), ('val', 6), ('test', 6)))
    plan = Plan(Data(root=str(root)), (Start('random'),), labels=(10.0, 50.0, 100.0))
    data = prepare(plan, tmp_path, tmp_path / 'w')
    held = {i['file_name'] for path in (data.val, data.test) for i in json.loads(path.read_text())['images']}
    trained = [*data.subsets.values(), *(folder / 'train.json' for folder in data.pretraining.values()), data.train]
    for path in trained:
        assert not held & {i['file_name'] for i in json.loads(path.read_text())['images']}
    assert not json.loads((data.pretraining[False] / 'train.json').read_text())['annotations']
    with_boxes = json.loads((data.pretraining[True] / 'train.json').read_text())
    assert [c['name'] for c in with_boxes['categories']] == ['object']  # the boxes, not the classes


def test_data_that_is_moved_is_the_same_data(tmp_path):
    plan = Plan(Data(root='data'), (Start('random'),))
    write_noise_coco(tmp_path / 'a' / 'data')
    first = prepare(plan, tmp_path / 'a', tmp_path / 'w')
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    second = prepare(plan, tmp_path / 'b', tmp_path / 'w')
    assert first.identity == second.identity and first.subsets == second.subsets
    assert str(tmp_path / 'b') in second.train.read_text() and str(tmp_path / 'a') not in second.val.read_text()


def test_without_a_val_split_images_are_held_out(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 12),))
    data = prepare(Plan(Data(root=str(root)), (Start('random'),)), tmp_path, tmp_path / 'w')
    assert data.images['train'] == 9 and data.images['val'] == 3 and 'held out' in data.notes[0]


def test_a_class_with_few_images_is_held_out_too_and_one_that_cannot_be_is_named(tmp_path):
    root = write_noise_coco(tmp_path / 'data', (('train', 12),))
    file = root / 'annotations' / 'train.json'
    content = json.loads(file.read_text())
    for shift in range(12):  # whichever images are drawn
        for annotation in content['annotations']:
            place = (annotation['image_id'] + shift) % 12
            annotation['category_id'] = 1 if place > 2 else 2 if place else 3
        content['categories'] = [dict(id=i, name=name) for i, name in enumerate(('hare', 'lynx', 'mole'), 1)]
        file.write_text(json.dumps(content))
        data = prepare(Plan(Data(root=str(root)), (Start('random'),)), tmp_path, tmp_path / f'w{shift}')
        for split, kinds in ((data.train, {1, 2, 3}), (data.val, {1, 2})):
            assert {a['category_id'] for a in json.loads(split.read_text())['annotations']} == kinds
        assert 'the val split has no object of: mole' in data.notes


def test_label_subsets_are_nested_and_seeded(tmp_path):
    root = write_noise_coco(tmp_path / 'data')
    content = json.loads((root / 'annotations' / 'train.json').read_text())
    one, two = (label_subsets(content, [1, 10, 50, 100], seed) for seed in (0, 1))
    ids = [{i['id'] for i in one[p]['images']} for p in (1, 10, 50, 100)]
    assert [len(i) for i in ids] == [1, 2, 12, 24] and ids[0] < ids[1] < ids[2] < ids[3]
    assert {i['id'] for i in two[50]['images']} != ids[2]
    assert all(
        {a['image_id'] for a in part['annotations']} <= {i['id'] for i in part['images']} for part in one.values()
    )


def test_tuning_gives_every_start_the_same_trials_and_uses_what_it_found(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    plan = plan_file(tmp_path, tuning=dict(trials=4, labels=25), labels=[25], measures=False, pictures=0)
    outcome = compare(plan, work_dir=tmp_path / 'w', jobs=1)
    assert {len(found['trials']) for found in outcome.tuned.values()} == {4} and len(outcome.tuned) == 2
    for found in outcome.tuned.values():
        assert found['trials'][0]['pretraining'] == found['trials'][0]['detector'] == {}
        best = found['trials'][found['trial']]
        assert best['ap'] == max(trial['ap'] for trial in found['trials'])
    folder = next((tmp_path / 'w' / 'stages').glob('detector_good_p0_25pct_d0-*'))
    cfg = Config.fromfile(folder / 'config.py')
    chosen = outcome.tuned['good']['detector']
    assert chosen and cfg.optim_wrapper.optimizer.lr == chosen['optim_wrapper.optimizer.lr']
    report = (tmp_path / 'w' / 'report.md').read_text()
    assert 'judged by box AP on the val images. The same val images chose' in report
    both = {part: outcome.tuned['good'][part]['optim_wrapper.optimizer.lr'] for part in ('pretraining', 'detector')}
    assert len(set(both.values())) == 2, 'or the next line could not fail'
    for part, value in both.items():  # a knob of one name in both
        assert re.search(rf'{part}: [^;|]*optim_wrapper.optimizer.lr = {value}', report)


def test_a_size_that_is_chosen_otherwise_is_another_detector(tmp_path, training, monkeypatch):
    write_noise_coco(tmp_path / 'data')
    plan = plan_file(tmp_path, detector=dict(iterations=20), labels=[25], measures=False, pictures=0)
    engine = sys.modules[module.Comparison.__module__]
    runs = []
    for size in (128, 128, 160):  # as on a machine with a GPU and on one without
        monkeypatch.setattr(engine, 'fitting_size', lambda content, size=size: size)
        before = len(training.calls)
        compare(plan, work_dir=tmp_path / 'w', jobs=1)
        runs.append(sum('detector' in name for name in map(str, training.calls[before:])))
    assert runs[0] == runs[2] > runs[1] == 0


def test_a_trial_is_estimated_by_its_own_length(tmp_path, training, capsys):
    write_noise_coco(tmp_path / 'data')
    tuning = dict(trials=2, labels=25, share=0.25)
    plan = plan_file(tmp_path, tuning=tuning, labels=[25], pretraining=dict(iterations=24_000))
    assert compare(plan, work_dir=tmp_path / 'w', jobs=1, dry_run=True) is None
    minutes = dict(re.findall(r'^  (\S+) +([0-9.]+) min$', capsys.readouterr().out, re.M))
    whole, trial = float(minutes['pretraining_good_p0']), float(minutes['trial1_good_pretraining'])
    assert whole - trial == pytest.approx(0.75 * 24_000 * 0.01 / 60, abs=0.06)  # 0.01 s for an iteration, and a start


def annotate(root, change, parts=('train', 'val')):
    """Change the annotations of a COCO-style data set by ``change(part, number, annotation)``."""
    for part in parts:
        path = root / 'annotations' / f'{part}.json'
        content = json.loads(path.read_text())
        for number, annotation in enumerate(content['annotations']):
            change(part, number, annotation)
        path.write_text(json.dumps(content))


def test_all_columns_are_of_all_classes_that_are_evaluated(tmp_path, training):
    """Of a class without labelled objects a detector finds none; mmdet's own mean leaves it out."""

    def rename(part, number, annotation):
        annotation['category_id'] = 1 + (number % 3 == 0 and (part == 'val' or number < 3))

    annotate(write_noise_coco(tmp_path / 'data'), rename)
    plan = plan_file(tmp_path, starts={'random weights': {}}, labels=[25, 100], measures=False, pictures=0)
    few, all_ = compare(plan, work_dir=tmp_path / 'w', jobs=1).tables
    for table in (few, all_):
        row = table.row('random weights')
        assert row.extra['box AP50'] == pytest.approx(row.runs.mean, abs=0.02)  # the fake logs AP as AP50
    tuned = plan_file(tmp_path, starts={'random weights': {}}, labels=[25], tuning=dict(trials=1), pictures=0)
    outcome = compare(tuned, work_dir=tmp_path / 'w', jobs=1)
    (found,) = (tmp_path / 'w').glob('stages/trial0_*_detector-*/predictions.bbox.json')
    (val,) = (tmp_path / 'w' / 'data').glob('val-*.json')
    ap = stats.average_precision(stats.match(val, found))[0]
    assert outcome.tuned['random weights']['trials'][0]['ap'] == pytest.approx(ap, abs=0.02)


def test_starts_of_other_boxes_are_not_said_to_use_the_annotated_ones():
    options = {'train_dataloader.dataset.ann_file': '/found.json'}
    whole = {'train_dataloader.dataset.pipeline.1.target_rule': 'whole_image'}
    recipes = dict(ODIS={}, found=options, whole=whole)
    starts = {name: dict(recipe='odis_small', options=changes) for name, changes in recipes.items()}
    plan = parse_plan(dict(data=dict(root='x'), starts=starts))
    comparison = SimpleNamespace(plan=plan)
    assert module.Comparison.told_boxes(comparison) == ['ODIS']
    assert module.Comparison.own_data(comparison) == dict(found='/found.json')


def test_files_that_options_name_are_read_anew_when_they_changed(tmp_path, training):
    boxes, annotations = tmp_path / 'found.json', write_noise_coco(tmp_path / 'data') / 'annotations' / 'train.json'
    content = json.loads(annotations.read_text())
    boxes.write_text(json.dumps({**content, 'annotations': content['annotations'][1:]}))
    own = {'ann_file': str(boxes), 'data_prefix': str(tmp_path / 'data' / 'images')}
    found = dict(recipe='odis_demo', options={f'train_dataloader.dataset.{key}': own[key] for key in own})
    starts = {'random weights': {}, 'good': dict(recipe='odis_demo'), 'found': found}
    plan = plan_file(tmp_path, starts=starts, labels=[100], measures=False, pictures=0)
    compare(plan, work_dir=tmp_path / 'w', jobs=1)
    del training.calls[:]
    compare(plan, work_dir=tmp_path / 'w', jobs=1)
    assert not training.calls
    boxes.write_text(json.dumps(content))
    compare(plan, work_dir=tmp_path / 'w', jobs=1)
    assert len(training.calls) == 2 + 2 * 2 and all('found' in name for name in training.calls)


def test_a_mask_detector_that_finds_nothing_has_a_mask_ap(tmp_path):
    engine = sys.modules[module.Comparison.__module__]
    (tmp_path / 'predictions.bbox.json').write_text('[]')
    assert 'mask AP' not in engine.ap_of(tmp_path)
    (tmp_path / 'predictions.segm.json').write_text('[]')
    assert engine.ap_of(tmp_path)['mask AP'] == 0


@pytest.mark.parametrize('bare', [('train', []), ('train', [[9, 9, 20, 20]]), ('val', None), ('crowd', None)])
def test_every_amount_of_labels_gets_the_same_detector(tmp_path, training, bare):
    """Of a polygon of two points no mask is made; crowd regions need one, too."""

    def outline(part, number, annotation):
        x, y, w, h = annotation['bbox']
        annotation['segmentation'] = [[x, y, x + w, y, x + w, y + h]]
        if number == 0 and part == bare[0].replace('crowd', 'train'):
            annotation.update(segmentation=bare[1], iscrowd=int(bare[0] == 'crowd'))

    annotate(write_noise_coco(tmp_path / 'data'), outline)
    plan = plan_file(tmp_path, starts={'random weights': {}}, measures=False, pictures=0)
    compare(plan, work_dir=tmp_path / 'w', jobs=1)
    configs = list((tmp_path / 'w' / 'stages').glob('detector_*/config.py'))
    assert {Config.fromfile(path).model.type for path in configs} == {'FasterRCNN'} and len(configs) == 4
    assert 'so the detector is one of boxes' in (tmp_path / 'w' / 'report.md').read_text()


def test_minutes_are_turned_into_iterations_by_the_speed_of_each_start(tmp_path, training, capsys):
    write_noise_coco(tmp_path / 'data')
    slow = dict(recipe='alfm_demo', options={'train_dataloader.batch_size': 2})
    starts = {'random weights': {}, 'good': dict(recipe='alfm_demo'), 'slow': slow, 'too': dict(recipe='alfm_demo')}
    plan = plan_file(tmp_path, starts=starts, pretraining=dict(minutes=1))
    assert compare(plan, work_dir=tmp_path / 'w', jobs=1, dry_run=True) is None
    assert sorted(call.split('-')[0] for call in training.calls) == [
        'speed_alfm_demo',
        'speed_alfm_demo_2',
        'speed_detector',
    ]
    batches = {
        folder.name.split('-')[0]: Config.fromfile(folder / 'config.py').train_dataloader.batch_size
        for folder in (tmp_path / 'w' / 'stages').glob('speed_alfm*')
    }
    assert batches['speed_alfm_demo_2'] == 2 < batches['speed_alfm_demo']


def test_the_speed_of_a_chain_is_that_of_its_files_backbone(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    chain = dict(chain=[dict(file=str(training.export)), dict(recipe='alfm_demo')])
    starts = {'random weights': {}, 'good': dict(recipe='alfm_demo'), 'chain': chain}
    plan = plan_file(tmp_path, starts=starts, pretraining=dict(minutes=1))
    assert compare(plan, work_dir=tmp_path / 'w', jobs=1, dry_run=True) is None
    widths = {
        folder.name.split('-')[0]: Config.fromfile(folder / 'config.py').model.backbone.arch['embed_dims']
        for folder in (tmp_path / 'w' / 'stages').glob('speed_alfm*')
    }
    assert widths['speed_alfm_demo_2'] == 32 != widths['speed_alfm_demo']


def test_the_time_of_detectors_is_that_of_their_files_backbone(tmp_path, training, capsys, monkeypatch):
    write_noise_coco(tmp_path / 'data')
    usual = training.detector

    def detector(cfg, run):
        usual(cfg, run)
        path = run / 'x' / 'vis_data' / 'scalars.json'
        if (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint'):
            path.write_text(path.read_text().replace('"time": 0.01', '"time": 60.0'))

    monkeypatch.setattr(training, 'detector', detector)
    chain = dict(chain=[dict(file=str(training.export)), dict(recipe='alfm_demo')])
    starts = {'random weights': {}, 'good': dict(recipe='alfm_demo'), 'mine': dict(file=str(training.export))}
    for more, minutes in (({}, 4 * 20), (dict(chain=chain), (4 + 8) * 20)):  # detectors of 20 iterations
        plan = plan_file(tmp_path, starts={**starts, **more}, measures=False)
        compare(plan, work_dir=tmp_path / 'w', jobs=1, dry_run=True)
        told = capsys.readouterr().out
        assert minutes <= int(re.search(r'those that are left take about (\d+) minutes', told)[1]) < minutes + 10
    assert sum(call.startswith('speed_detector') for call in training.calls) == 2, 'one for each file'
    mine = dict(recipes=[], files=[training.export], work_dir=tmp_path / 'fit')
    compare_data(tmp_path / 'data', 10000, **mine, jobs=1, dry_run=True)
    both = int(re.search(r'measured speed this takes about (\d+) minutes', capsys.readouterr().out)[1])
    assert 240 <= both < 250, 'two detectors of the file, of 120 iterations'


def test_detectors_that_find_nothing_are_compared(tmp_path, training, monkeypatch):
    """As after the few steps that measure the speed, of many classes; mmdet logs the time of such an evaluation
    alone."""
    write_noise_coco(tmp_path / 'data')

    def nothing(cfg, run):
        prefix = cfg.val_evaluator.get('outfile_prefix')
        if prefix:
            open(f'{prefix}.bbox.json', 'w').write('[]')
        records = [*(dict(loss=1.0, time=0.01, step=i + 1) for i in range(12)), dict(time=0.02, step=12)]
        (run / 'x' / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))

    monkeypatch.setattr(training, 'detector', nothing)
    compare(plan_file(tmp_path, measures=False), work_dir=tmp_path / 'w', jobs=1)
    report = numbers(tmp_path / 'w')
    assert report['verdict'].startswith('Nothing can be said: no detector has found anything')
    assert {row['mean'] for table in report['tables'] for row in table['rows']} == {0.0}


def test_a_name_with_a_bar_is_one_cell():
    section = Section('By class', header=['class', 'random', 'A|B'], rows=[['cat|dog', '1.0', '2.0']])
    rows = [line for line in to_markdown('title', [section]).splitlines() if line.startswith('|')]
    assert [len(re.findall(r'(?<!\\)\|', row)) for row in rows] == [4, 4, 4]


def test_names_are_no_marks_of_markdown_or_html():
    items = ['<x> and don`t', '**Recommendation.** Take **b** or `c` first.', 'Command: `a <b>`']
    section = Section('By class', ['<none> helps.'], items, ['class'], [['<none>'], ['*any*'], ['o`c']])
    text = to_markdown('<cells>', [section])
    assert text.startswith(r'# \<cells>') and r'| \<none> |' in text and r'| \*any\* |' in text and r'| o\`c |' in text
    assert r'- \<x> and don\`t' in text and '- Command: `a <b>`' in text
    assert r'- **Recommendation.** Take \*\*b\*\* or \`c\` first.' in text
    page = to_html('title', [section])
    for item in ('&lt;x&gt; and don`t', '<b>Recommendation.</b> Take **b** or `c` first.'):
        assert f'<li>{item}</li>' in page
    assert '<li>Command: <code>a &lt;b&gt;</code></li>' in page


@pytest.mark.parametrize('name', ['good $^$', '_good'])
def test_any_name_of_a_start_is_in_the_figures(tmp_path, training, name):
    """To matplotlib, $ begins a formula, and a label with _ before it is none."""
    write_noise_coco(tmp_path / 'data')
    starts = {'random weights': {}, name: dict(recipe='alfm_demo')}
    plan = plan_file(tmp_path, starts=starts, pretraining=dict(iterations=20, lengths=[0.5]))
    compare(plan, work_dir=tmp_path / 'w', jobs=2)
    for figure in ('labels', 'lengths', 'differences'):
        assert name in (tmp_path / 'w' / 'figures' / f'{figure}.svg').read_text()


def test_exports_of_one_name_are_starts_of_their_own():
    files = ['/runs/odis/a/epoch_9_backbone.pth', '/runs/gtsa/a/epoch_9_backbone.pth', '/runs/vit.pth', '/runs/vit.pth']
    plan = module.draft(Path('/data'), [], files, None)
    assert {start.name: start.steps[0].file for start in plan.starts if start.steps} == {
        'odis a epoch_9_backbone': files[0],
        'gtsa a epoch_9_backbone': files[1],
        'vit': files[2],
    }
    names = [s.name for s in module.draft(Path('/data'), None, ['/a/vit.pth', '/a/vit.bin', '/b/vit.pth'], None).starts]
    assert names[1:4] == ['a vit.pth', 'a vit.bin', 'b vit']
    files = ['/a/odis.pth', '/a/random-weights.pth']
    plan = module.changed_plan(module.draft(Path('/data'), None, files, None), [])
    assert [start.name for start in plan.starts[1:3]] == ['odis (file)', 'random-weights (file)']


def test_frozen_features_of_a_resnet_are_measured(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    resnet = MODELS.build(dict(type='ResNet', depth=18))
    save_backbone(tmp_path / 'good.pth', resnet.state_dict())
    starts = {'random weights': {}, 'good': dict(file='good.pth')}
    detector = dict(config='faster-rcnn_r50_fpn_1x_coco', iterations=20)
    plan = plan_file(tmp_path, starts=starts, detector=detector, labels=[100], pictures=0)
    assert 'good' in compare(plan, work_dir=tmp_path / 'w', jobs=1).measures


def test_shapes_of_files_are_told_and_random_weights_measured_in_that_of_recipes(tmp_path, training):
    write_noise_coco(tmp_path / 'data')
    shutil.copy(training.export, tmp_path / 'bad.pth')
    starts = {'random weights': {}, 'bad': dict(file='bad.pth'), 'good': dict(recipe='alfm_demo')}
    plan = plan_file(tmp_path, starts=starts, labels=[100], pictures=0)
    assert compare(plan, work_dir=tmp_path / 'w', jobs=1).measures['random weights']['box_pool'] == 50
    same = "the same for all starts, but for the backbone, which has the shape of a start's file, 20 iterations"
    assert same in (tmp_path / 'w' / 'report.md').read_text()


def test_a_wrong_change_leaves_no_plan_behind(tmp_path, training, monkeypatch):
    monkeypatch.setattr(module, 'SMALL', {'good': 'alfm_demo'})
    root = write_noise_coco(tmp_path / 'data')
    for _ in range(2):
        with pytest.raises(ConfigError, match="no key 'detectr'"):
            compare_data(root, 60, work_dir=tmp_path / 'w', jobs=1, changes=['detectr.size=64'], dry_run=True)
    assert not training.calls and not (tmp_path / 'w' / 'plan.yaml').exists()
    compare_data(root, 60, work_dir=tmp_path / 'w', jobs=1, changes=['detector.size=64'], dry_run=True)
    assert module.load_plan(tmp_path / 'w' / 'plan.yaml')[0].detector.size == 64


def test_changes_hold_while_the_speed_is_measured(tmp_path, training, monkeypatch, capsys):
    monkeypatch.setattr(module, 'SMALL', {'good': 'alfm_demo'})
    monkeypatch.chdir(tmp_path)
    root = write_noise_coco(tmp_path / 'data')
    shutil.copy(root / 'annotations' / 'train.json', root / 'annotations' / 'train_2.json')
    shutil.copytree(root / 'images', tmp_path / 'more')
    with pytest.raises(ConfigError, match='--set data.train=FILE data.val=FILE'):
        compare_data(root, 60, work_dir=tmp_path / 'w', jobs=1, dry_run=True)
    changes = ['data.train=annotations/train.json', 'data.unlabelled=more', 'data.duplicates=allow']
    changes += ['detector.size=64', 'pretraining.iterations=20']
    compare_data(root, 60, work_dir=tmp_path / 'w', jobs=1, changes=changes, dry_run=True)
    assert capsys.readouterr().out.count('measuring') == 1  # of the detector that is trained, and of no other
    plan = module.load_plan(tmp_path / 'w' / 'plan.yaml')[0]
    assert (plan.pretraining.iterations, plan.pretraining.minutes) == (20, None)
    compare_data(root, 60, work_dir=tmp_path / 'w', jobs=1, changes=changes, dry_run=True)  # it goes on


def test_images_without_annotations_are_told_of_and_can_be_pretrained_on(tmp_path, training, monkeypatch, capsys):
    monkeypatch.setattr(module, 'SMALL', {'good': 'alfm_demo'})
    root = write_noise_coco(tmp_path / 'data')
    noise = np.random.default_rng(9).integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
    Image.fromarray(noise).save(root / 'images' / 'more.png')
    compare_data(root, 60, work_dir=tmp_path / 'w', jobs=1, dry_run=True)
    said = capsys.readouterr().out
    folder = (root / 'images').resolve()
    told = f'add --set data.unlabelled={folder} --duplicates drop'
    assert '1 images in' in said and 'and are not used (more.png); to pretrain on them, too' in said and told in said
    changes = [f'data.unlabelled={folder}']
    compare_data(root, 60, work_dir=tmp_path / 'v', jobs=1, changes=changes, duplicates='drop', dry_run=True)
    assert 'are not used' not in capsys.readouterr().out
    (listed,) = (tmp_path / 'v' / 'data').glob('pretraining-plain-*/train.json')
    names = {Path(image['file_name']).name for image in json.loads(listed.read_text())['images']}
    assert names == {*(f'{number}.png' for number in range(1, 25)), 'more.png'}  # of 16 val images none


@pytest.mark.parametrize('channels', [1, 5])
def test_pictures_of_scientific_images_can_be_seen(channels, tmp_path, training):
    import tifffile

    root = write_noise_coco(tmp_path / 'data')
    for part in ('train', 'val'):
        path = root / 'annotations' / f'{part}.json'
        content = json.loads(path.read_text())
        for image in content['images']:
            grey = np.asarray(Image.open(root / 'images' / image['file_name']).convert('L')).astype(np.uint16) * 40
            image['file_name'] = Path(image['file_name']).stem + '.tif'
            pixels = grey if channels == 1 else np.stack([grey] * channels, -1)
            tifffile.imwrite(root / 'images' / image['file_name'], pixels)
        path.write_text(json.dumps(content))
    plan = plan_file(tmp_path, starts={'random weights': {}}, labels=[100], measures=False, pictures=1)
    compare(plan, work_dir=tmp_path / 'w', jobs=1)
    drawn = re.findall(r'image/jpeg;base64,([^"]*)"', (tmp_path / 'w' / 'report.html').read_text())
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in drawn]
    assert len(pixels) == 2 and all(20 < np.median(picture) < 235 for picture in pixels)


def test_fractions_are_of_the_images_with_objects(tmp_path, training, monkeypatch):
    monkeypatch.setattr(module, 'SMALL', {'good': 'alfm_demo'})
    root = write_noise_coco(tmp_path / 'data', (('train', 80), ('val', 4)))
    path = root / 'annotations' / 'train.json'
    content = json.loads(path.read_text())
    for annotated, labels in ((80, (10.0,)), (40, (100.0,))):  # 4 of 40 would be too few
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] <= annotated]
        path.write_text(json.dumps(content))
        compare_data(root, 60, work_dir=tmp_path / str(annotated), jobs=1, dry_run=True)
        assert module.load_plan(tmp_path / str(annotated) / 'plan.yaml')[0].labels == labels


def test_folders_of_one_name_are_two_data_sets(tmp_path, training, monkeypatch):
    monkeypatch.setattr(module, 'SMALL', {'good': 'alfm_demo'})
    monkeypatch.chdir(tmp_path)
    compare_data(write_noise_coco(tmp_path / 'a' / 'data'), 60, jobs=1, dry_run=True)
    with pytest.raises(ConfigError, match=r'was made by another command .*/a/data .*take another --work-dir'):
        compare_data(write_noise_coco(tmp_path / 'b' / 'data'), 60, jobs=1, dry_run=True)


def test_a_data_set_gets_a_plan_that_fits_the_time(tmp_path, training, monkeypatch, capsys):
    monkeypatch.setattr(module, 'SMALL', {'good': 'alfm_demo', 'bad': 'gtsa_demo'})
    root = write_noise_coco(tmp_path / 'data')
    work = tmp_path / 'w'
    assert compare_data(root, 60, work_dir=work, jobs=1, dry_run=True) is None
    said = capsys.readouterr().out
    told = (
        'measuring the speed of this machine first, by trainings of 12 steps (alfm_demo, gtsa_demo, detector); on CPUs'
    )
    assert f'{told} this takes about 1.5 minutes' in said and said.count('measuring') == 1
    assert said.index(told) < said.index('speed_detector: done')
    rich, _ = module.load_plan(work / 'plan.yaml')
    assert rich.detector.longer == 4 and 'iterations on images of 128 px with 100 % of the labels' in said
    assert len(rich.starts) == 3 and rich.seeds.pretraining == rich.seeds.detector == 2 and rich.labels == (100.0,)
    for path in (shutil.copytree(root, tmp_path / 'small') / 'annotations').iterdir():
        found = json.loads(path.read_text())
        for box in found['annotations']:
            box.update(bbox=[*box['bbox'][:2], 3.0, 3.0], area=9.0)  # 5.3 pixels at a short side of 128
        path.write_text(json.dumps(found))
    compare_data(tmp_path / 'small', 60, work_dir=tmp_path / 'ws', jobs=1, dry_run=True)
    assert 'iterations on images of 192 px' in capsys.readouterr().out
    (config,) = (tmp_path / 'ws').glob('stages/speed_detector-*/config.py')
    steps = Config.fromfile(config).test_dataloader.dataset.pipeline
    assert [min(step.scale) for step in steps if step.type == 'Resize'] == [192]
    compare_data(root, 10, work_dir=tmp_path / 'short', jobs=1, dry_run=True)
    poor, _ = module.load_plan(tmp_path / 'short' / 'plan.yaml')
    assert poor.pretraining.minutes < rich.pretraining.minutes
    with pytest.raises(ConfigError, match='minutes must be above 0, got -5'):
        compare_data(root, -5, work_dir=tmp_path / 'none')
    for minutes, told in (
        (2.9, '2.9 minutes are too short .* on any machine, .* give it 3 or more'),
        (2.95, 'give it about'),
    ):
        before = len(training.calls)
        with pytest.raises(ConfigError, match=told):
            compare_data(root, minutes, work_dir=tmp_path / 'none', jobs=1)
        assert (len(training.calls) > before) == (minutes == 2.95), 'measured only where it may be enough'
    with pytest.raises(ConfigError, match='was made by another command .*take another --work-dir'):
        compare_data(root, 30, work_dir=work, jobs=1)
    before = (work / 'plan.yaml').read_text()
    compare_data(root, 60, work_dir=work, jobs=1, dry_run=True)
    assert (work / 'plan.yaml').read_text() == before
