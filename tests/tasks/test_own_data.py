"""A user's own data through the three commands, at the smallest size that trains."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS

import odis_mm
from helpers import SMALL_DETECTOR
from odis_mm.cli import train as train_cli
from odis_mm.cli.tasks import finetune_main, predict_main, pretrain_main, views_main
from odis_mm.config import RUNNER_KEYS
from odis_mm.datasets.layout import find_splits
from odis_mm.models.backbones import ObjectViT
from odis_mm.recipes import METHODS, detector_config, pretraining_config
from odis_mm.tasks import Finetuned, finetune, predict, pretrain
from odis_mm.tasks.finetune import annotated_splits, detector_splits
from odis_mm.tasks.predict import drawn_boxes
from odis_mm.transfer import load_local, read_checkpoint, read_meta
from odis_mm.utils.errors import BadImageError, CheckpointError, ConfigError, FolderInUseError, MissingFileError

pytest.importorskip('mmcv._ext')
TINY = {
    'model.backbone.arch.embed_dims': 32,
    'model.backbone.arch.num_layers': 2,
    'model.backbone.arch.feedforward_channels': 64,
    'model.neck.in_channels': 32,
    'default_hooks.logger.interval': 1,
}
UNSEEN = {'default_hooks.views': None}  # pictures take longer than these trainings


@pytest.fixture(scope='module')
def coco_folder(coco_folder, tmp_path_factory):
    """The same with the areas that mmdet's reader asks for, and the ids from 1 on that pycocotools does."""
    root = tmp_path_factory.mktemp('with_area')
    (root / 'annotations').mkdir()
    for part in ('train2017', 'val2017'):
        (root / part).symlink_to(coco_folder / part)
        content = json.loads((coco_folder / f'annotations/instances_{part}.json').read_text())
        content['annotations'] = [
            {**a, 'id': a['id'] + 1, 'area': a['bbox'][2] * a['bbox'][3]} for a in content['annotations']
        ]
        (root / f'annotations/instances_{part}.json').write_text(json.dumps(content))
    return root


@pytest.fixture(scope='module')
def chain(coco_folder, tmp_path_factory):
    """Pretrained, then fine-tuned from the export."""
    work = tmp_path_factory.mktemp('own')
    export = pretrain(coco_folder, steps=4, size=16, batch=5, work_dir=work / 'pretrain', options=TINY)
    done = finetune(
        coco_folder, init=export, steps=3, size=64, batch=2, work_dir=work / 'detector', options=SMALL_DETECTOR
    )
    return work, export, done


def test_pictures_name_the_classes_of_the_detector(chain, coco_folder, tmp_path, monkeypatch):
    from mmdet.visualization import DetLocalVisualizer

    from odis_mm.detection import BoxVisualizer

    work, _, _ = chain
    seen, draw = [], DetLocalVisualizer.add_datasample
    monkeypatch.setattr(
        DetLocalVisualizer,
        'add_datasample',
        lambda self, *args, **kwargs: (seen.append((type(self), self.dataset_meta)), draw(self, *args, **kwargs))[1],
    )
    image = next((coco_folder / 'val2017').iterdir())
    (config,) = (work / 'detector').glob('*.py')
    older = tmp_path / 'older.py'  # of a version that drew with mmdet's own
    older.write_text(config.read_text().replace('BoxVisualizer', 'DetLocalVisualizer'))
    written = predict(older, work / 'detector' / 'iter_3.pth', image, tmp_path, threshold=0.0)
    names = tuple(category['name'] for category in json.loads(written.read_text())['categories'])
    ((drawn_by, meta),) = seen
    assert drawn_by is BoxVisualizer and meta['classes'] == names and len(names) < 80


def test_an_interrupted_prediction_keeps_what_was_found(chain, coco_folder, tmp_path, monkeypatch):
    from odis_mm.detection.inference import FileInferencer

    work, _, _ = chain
    draw, drawn = FileInferencer.visualize, []

    def interrupted(self, inputs, *args, **kwargs):
        if drawn:
            raise KeyboardInterrupt
        drawn.extend(inputs)
        return draw(self, inputs, *args, **kwargs)

    monkeypatch.setattr(FileInferencer, 'visualize', interrupted)
    told = []
    monkeypatch.setattr(sys.modules[predict.__module__], 'print_log', lambda text, **kwargs: told.append(text))
    with pytest.raises(KeyboardInterrupt):
        predict(work / 'detector', None, coco_folder / 'val2017', tmp_path / 'out', batch=1, quiet=True)
    content = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert [image['file_name'] for image in content['images']] == drawn and len(drawn) == 1
    assert f'interrupted: {tmp_path}/out/predictions.json holds the predictions of the first 1 of 7 images' in told


def test_pictures_without_a_box_are_explained(chain, coco_folder, tmp_path, capsys):
    work, _, _ = chain
    for threshold in (0.0, 1.0):
        written = predict(
            work / 'detector', None, coco_folder / 'val2017', tmp_path / str(threshold), threshold=threshold
        )
        content = json.loads(written.read_text())
        scores = [a['score'] for a in content['annotations']]
        pictures = len(content['images'])
        if threshold:
            best = int(max(scores) * 100) / 100
            line = (
                f'0 of {len(scores)} boxes (score 1 or more) drawn in {pictures} pictures; {pictures} pictures have no '
                f'box: the best score in them is {best:.2f}, below the threshold of 1: lower it (odis-mm predict '
                '--threshold), or train the detector for longer\n'
            )
        else:
            line = f'{len(scores)} of {len(scores)} boxes (score 0 or more) drawn in {pictures} pictures\n'
        assert scores and line in capsys.readouterr().out


def test_a_score_just_below_the_threshold_is_not_rounded_up_to_it():
    content = {'images': [{'id': 1}], 'annotations': [{'image_id': 1, 'score': 0.297}]}
    assert 'the best score in it is 0.29, below the threshold of 0.3:' in drawn_boxes(content, 0.3)
    assert drawn_boxes(content, 0.2) == '1 of 1 box (score 0.2 or more) drawn in 1 picture'


def test_images_of_other_splits_are_told_of(coco_folder, tmp_path):
    for name in ('train2017', 'val2017'):
        (tmp_path / name).symlink_to(coco_folder / name)

    def told(folder):
        return ' '.join(pretraining_config(folder)[0].notes)

    assert 'images of val2017 are among them' in told(tmp_path)
    assert 'are among them' not in told(tmp_path / 'train2017')
    assert 'are among them' not in told(coco_folder), 'its annotations tell the images of train'


def test_a_handful_of_images_is_told_to_be_few(coco_folder, monkeypatch):
    assert 'mind: the recipes were tried with 200 images and more' in ' '.join(pretraining_config(coco_folder)[0].notes)
    monkeypatch.setitem(pretraining_config.__globals__, 'TRIED', (5, 5000))
    assert 'mind:' not in ' '.join(pretraining_config(coco_folder)[0].notes)


def test_images_whose_annotations_lie_above_are_led_there(coco_folder, tmp_path):
    shutil.copytree(coco_folder / 'train2017', tmp_path / 'images')
    (tmp_path / 'annotations').mkdir()
    whole = json.loads((coco_folder / 'annotations' / 'instances_train2017.json').read_text())
    for split, part in (('train', slice(1, None)), ('val', slice(0, 1))):
        text = json.dumps({**whole, 'images': whole['images'][part]})
        (tmp_path / 'annotations' / f'{split}.json').write_text(text)
    cfg, found = pretraining_config(tmp_path / 'images')
    assert f'alone, by --data {tmp_path} --boxes none' in ' '.join(cfg.notes)
    assert pretraining_config(tmp_path, boxes='none')[1].images == found.images - 1, 'the remedy works'
    with pytest.raises(MissingFileError, match=f'its images lie in {tmp_path}, so take --data {tmp_path}'):
        finetune(tmp_path / 'images', work_dir=tmp_path / 'run')


def test_a_detector_says_what_its_pretraining_has_seen(chain, coco_folder, tmp_path):
    _, export, _ = chain
    splits = [find_splits(coco_folder)[name] for name in ('train', 'val')]

    def notes(**meta):
        content = torch.load(export, weights_only=True)
        torch.save({**content, 'meta': {**content['meta'], **meta}}, tmp_path / 'a.pth')
        return ' '.join(detector_config(*splits, init=tmp_path / 'a.pth').notes)

    count = len(json.loads(splits[1].ann_file.read_text())['images'])
    assert 'every image' not in notes()
    assert f'used every image of {coco_folder}, {count} of the {count} validation images' in notes(
        every_image_of=str(coco_folder)
    )
    assert 'every image' not in notes(every_image_of=str(coco_folder / 'train2017'))


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('width', [128, 384])
def test_wide_weights_are_kept(method, width, coco_folder, tmp_path):
    arch = dict(embed_dims=width, num_layers=4, num_heads=width // 64, feedforward_channels=width)
    vit = ObjectViT(arch=arch, patch_size=14, img_size=28)
    torch.save(
        dict(state_dict={f'backbone.{key}': value for key, value in vit.state_dict().items()}), tmp_path / 'a.pth'
    )
    known = dict(method=method, init=tmp_path / 'a.pth', steps=1000, batch=5)
    plain, _ = pretraining_config(coco_folder, method=method, steps=1000, batch=5)
    cfg, _ = pretraining_config(coco_folder, **known)

    def views(cfg):
        step = next(s for s in cfg.train_dataloader.dataset.pipeline if s['type'] in ('SampleViews', 'SamplePairViews'))
        assert step.get('patch_size', 14) == cfg.model.backbone.patch_size
        return [view['size'] // cfg.model.backbone.patch_size for view in step['views']]

    assert cfg.model.neck.in_channels == width and cfg.model.backbone.patch_size == 14 and views(cfg) == views(plain)
    lr, before = cfg.optim_wrapper.optimizer.lr, plain.optim_wrapper.optimizer.lr
    momentum = cfg.model.momentum.start, plain.model.momentum.start
    warm = cfg.default_hooks.schedule.get('warm_heads', 0.0)
    told = [note for note in cfg.notes if note.startswith('settings that preserve the weights: ')]
    if width == 384:
        assert (lr, warm) == (pytest.approx(before / 10), 0.1) and momentum == (pytest.approx(0.996), 0.95)
        assert cfg.optim_wrapper.paramwise_cfg == dict(layer_decay_rate=0.75) and len(told) == 1
    else:
        assert (lr, warm) == (before, 0.0) and momentum[0] == momentum[1] and not told

    options = {'optim_wrapper.optimizer.lr': 3e-4}
    assert pretraining_config(coco_folder, **known, options=options)[0].optim_wrapper.optimizer.lr == 3e-4
    with pytest.raises(ConfigError, match='into patches of 14'):
        pretraining_config(coco_folder, **known, size=48)
    assert views(pretraining_config(coco_folder, **known, size=56)[0])[0] == 4


def test_a_recipe_that_keeps_weights_is_not_slowed_once_more(coco_folder, tmp_path):
    arch = dict(embed_dims=384, num_layers=1, num_heads=6, feedforward_channels=64)
    state = ObjectViT(arch=arch, patch_size=16, img_size=32).state_dict()
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in state.items()}), tmp_path / 'a.pth')
    known = dict(init=tmp_path / 'a.pth', recipe='odis_vits_continue_coco', steps=100, batch=5)
    cfg, _ = pretraining_config(coco_folder, **known)
    assert cfg.optim_wrapper.optimizer.lr == 5e-5 and cfg.model.momentum.start == 0.9995
    assert cfg.param_scheduler[1].eta_min == 1e-7
    own = tmp_path / 'own.py'
    own.write_text(cfg.pretty_text + "\nparam_scheduler = [dict(type='ConstantLR', factor=1.0)]\n")
    cfg, _ = pretraining_config(coco_folder, **{**known, 'recipe': str(own)})
    assert [part.end for part in cfg.param_scheduler] == [10, 100] and cfg.param_scheduler[1].eta_min == 1e-6


def test_wide_weights_start_a_run(coco_folder, tmp_path):
    """The weights of the export are those of the file, moved by a few slow steps."""
    arch = dict(embed_dims=384, num_layers=1, num_heads=6, feedforward_channels=64)
    vit = ObjectViT(arch=arch, patch_size=8, img_size=16)
    state = {f'backbone.{key}': value for key, value in vit.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    export = pretrain(
        coco_folder,
        init=tmp_path / 'a.pth',
        steps=4,
        size=16,
        batch=5,
        work_dir=tmp_path / 'run',
        options={'default_hooks.schedule.warm_heads': 0.49, 'default_hooks.logger.interval': 1, **UNSEEN},
    )
    found, key = read_checkpoint(export), 'backbone.layers.0.attn.qkv.weight'
    moved = (found[key] - state[key]).abs().max()
    assert found[key].shape == state[key].shape and 0 < moved < 0.1 * state[key].abs().max()


def test_the_chain_leaves_what_it_says(chain, coco_folder):
    work, export, done = chain
    assert export == work / 'pretrain' / f'epoch_{2}_backbone.pth'
    assert read_meta(export)['num_heads'] == 4 and read_checkpoint(export)['backbone.cls_token'].shape[-1] == 32
    assert {p.name for p in (work / 'pretrain').glob('*.png')} >= {'views_1.png', 'curves.png', 'attention.png'}
    notes = Config.fromfile(str(work / 'pretrain' / 'pretrain.py')).notes
    assert notes[0].startswith('recipe: odis_small') and any('% of the images show' in note for note in notes)

    assert {'bbox_mAP', 'AP of bar', 'AP of disc'} <= set(done.metrics)
    assert 'bbox_mAP_l' not in done.metrics and min(done.metrics.values()) >= 0, 'no object is that large'
    assert json.loads((work / 'detector' / 'metrics.json').read_text()) == done.metrics
    assert len(list((work / 'detector' / 'predictions' / 'vis').iterdir())) == 7
    assert (work / 'detector' / 'curves.png').is_file()
    assert len(list((work / 'detector').glob('*/vis_data/vis_image/curves_*'))) == 1  # TensorBoard, W&B
    assert re.match(r'\d+ of \d+ boxes \(score 0.3 or more\) drawn in 7 pictures', done.drawn)
    weights = read_checkpoint(done.checkpoint)
    assert weights['roi_head.bbox_head.fc_cls.weight'].shape[0] == 3  # bar, disc, background
    log = next((work / 'detector').glob('*/*.log')).read_text()
    assert f'backbone <- {export.name}' in log.replace(str(export.parent) + '/', '') and '0 unexpected' in log
    (mark,) = re.findall(r'\*\*fingerprint of the weights\*\*: (\w{12})', export.with_suffix('.md').read_text())
    assert f'fingerprint of the weights in the file {mark}' in log


def test_a_detector_starts_from_the_backbone_of_another(chain, coco_folder):
    """Of a width that is no paper's: its checkpoint tells the heads."""
    work, export, done = chain
    splits = [find_splits(coco_folder)[name] for name in ('train', 'val')]
    backbone = detector_config(*splits, init=done.checkpoint).model.backbone
    assert (backbone.arch.embed_dims, backbone.arch.num_heads, backbone.patch_size) == (32, 4, 8)
    told, exported = read_meta(done.checkpoint), read_meta(export)
    for name in ('num_heads', 'norm_eps', 'mean', 'std'):
        assert told[name] == pytest.approx(exported[name]), name


def test_a_resumed_finetune_draws_again(chain, coco_folder, tmp_path):
    run = tmp_path / 'detector'
    shutil.copytree(chain[0] / 'detector', run)
    known = dict(init=chain[1], size=64, batch=2, options=SMALL_DETECTOR)
    done = finetune(coco_folder, steps=4, work_dir=run, resume=True, **known)
    written = run / 'predictions' / 'predictions.json'
    assert done.checkpoint.name == 'iter_4.pth' and written.stat().st_mtime >= done.checkpoint.stat().st_mtime


def test_tensors_that_predict_leaves_in_the_file_are_told(chain, coco_folder, tmp_path, monkeypatch):
    work, _, _ = chain
    said = []
    monkeypatch.setattr(sys.modules[predict.__module__], 'print_log', lambda line, **_: said.append(line))
    (config,) = (work / 'detector').glob('*.py')
    content = load_local(str(work / 'detector' / 'iter_3.pth'))
    content['state_dict']['mask_head.weight'] = torch.zeros(2)
    torch.save(content, tmp_path / 'more.pth')
    image = next((coco_folder / 'val2017').iterdir())
    for weights, told in ((work / 'detector' / 'iter_3.pth', 0), (tmp_path / 'more.pth', 1)):
        predict(config, weights, image, tmp_path / weights.stem)
        assert said.count('mask_head.weight: in the file, not in the model') == told
        assert not [line for line in said if 'in the file' in line and 'mask_head' not in line]


def test_predictions_are_coco_and_scopes_do_not_leak(chain, coco_folder, tmp_path):
    work, export, done = chain
    target = predict(work / 'detector', None, coco_folder / 'val2017', tmp_path / 'out', threshold=0.0, quiet=True)
    content = json.loads(target.read_text())
    assert [c['name'] for c in content['categories']] == ['bar', 'disc'] and len(content['images']) == 7
    truth = json.loads((coco_folder / 'annotations/instances_train2017.json').read_text())
    ids = {category['name']: category['id'] for category in truth['categories']}
    assert {c['name']: c['id'] for c in content['categories']} == {name: ids[name] for name in ('bar', 'disc')}
    assert all(0 <= a['score'] <= 1 and a['category_id'] in ids.values() for a in content['annotations'])
    numbers = [value for a in content['annotations'] for value in (*a['bbox'], a['area'])]
    assert any(value % 1 for value in numbers) and all(value == round(value, 2) for value in numbers)
    assert [a['id'] for a in content['annotations']] == list(range(1, len(content['annotations']) + 1))
    assert all((tmp_path / 'out' / 'vis' / f'{i}.png').is_file() for i in range(7))
    with pytest.raises(FolderInUseError, match='out holds the predictions of an earlier run: name another folder'):
        predict(work / 'detector', None, coco_folder / 'val2017', tmp_path / 'out')
    image = np.zeros((64, 64, 3), np.uint8)
    found = odis_mm.extract_object_features(export, [image], [np.array([[4.0, 4, 30, 30]])], size=32)
    assert found.pooled.shape == (1, 32)


def test_wrong_weights_are_refused(chain, coco_folder, tmp_path):
    work, export, _ = chain
    out = tmp_path / 'out'
    with pytest.raises(ConfigError, match='no detector yet: odis-mm finetune --data ANNOTATED --init'):
        predict(export, None, coco_folder / 'val2017', out)
    (tmp_path / 'renamed.pth').write_bytes(export.read_bytes())
    (tmp_path / 'config.py').write_bytes((work / 'pretrain' / 'pretrain.py').read_bytes())
    with pytest.raises(CheckpointError, match='is an exported backbone of ODIS and does not fit this .*RCNN'):
        predict(work / 'detector', tmp_path / 'renamed.pth', coco_folder / 'val2017', out)
    with pytest.raises(ConfigError, match='is not the config of a detector'):
        predict(tmp_path / 'config.py', tmp_path / 'renamed.pth', coco_folder / 'val2017', out)
    (tmp_path / 'bad.png').write_text('no image')
    with pytest.raises(BadImageError, match='none of 1 images can be read'):
        predict(work / 'detector', None, tmp_path / 'bad.png', out)
    with pytest.raises(ConfigError, match="there is no device 'gpu' here"):
        predict(work / 'detector', None, coco_folder / 'val2017', out, device='gpu')
    assert not out.exists()


def test_written_configs_hold_what_was_trained(chain):
    work, _, done = chain
    for path in (done.config, work / 'pretrain' / 'pretrain.py'):
        written = Config.fromfile(str(path))
        assert not set(written) - RUNNER_KEYS - {'notes', 'tunable'}, 'variables of the files that it was made from'
    assert '80' not in re.findall(r'num_classes=(\d+)', done.config.read_text())


def test_the_test_command_draws(chain, tmp_path):
    work, _, done = chain
    train_cli.test_main(
        [
            str(done.config),
            str(done.checkpoint),
            '--work-dir',
            str(tmp_path / 'test'),
            '--show-dir',
            str(tmp_path / 'shown'),
        ]
    )
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 7


def test_a_work_dir_is_not_overwritten(chain, coco_folder):
    work, *_ = chain
    for call in (pretrain, finetune):
        folder = work / ('pretrain' if call is pretrain else 'detector')
        with pytest.raises(
            ConfigError, match='for another one add --work-dir .*_2; to continue that one, add --resume'
        ):
            call(coco_folder, steps=4, work_dir=folder)
        with pytest.raises(ConfigError, match='there is no checkpoint in .*gone; leave --resume out'):
            call(coco_folder, steps=4, work_dir=work / 'gone', resume=True)


def test_the_command_names_the_pictures_that_there_are(coco_folder, tmp_path, monkeypatch, capsys):
    for name in ('views_1.png', 'similarity.png', 'epoch_1_backbone.pth'):
        (tmp_path / name).touch()
    monkeypatch.setattr('odis_mm.tasks.pretrain', lambda *_, **__: tmp_path / 'epoch_1_backbone.pth')
    pretrain_main(['--data', str(coco_folder), '--work-dir', str(tmp_path)])
    assert f'pictures in {tmp_path}: similarity.png, views_1.png\n' in capsys.readouterr().out


@pytest.mark.parametrize('steps, told', [(60, '60 steps tell little'), (None, 'AP is 0.0 for 1 of 2 classes')])
def test_the_command_explains_its_figures(steps, told, coco_folder, tmp_path, monkeypatch, capsys):
    metrics = {'bbox_mAP': 6.25, 'AP of bar': 12.5, 'AP of disc': 0.0}
    done = Finetuned(tmp_path / 'iter_3.pth', tmp_path / 'detector.py', metrics, '3 boxes')
    monkeypatch.setattr('odis_mm.tasks.finetune', lambda *_, **__: done)
    finetune_main(
        [
            '--data',
            str(coco_folder),
            '--detector',
            'faster-rcnn',
            '--work-dir',
            str(tmp_path),
            *(['--steps', str(steps)] if steps else []),
        ]
    )
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith('on the validation split, in percent') and said[3].split() == ['AP', 'of', 'disc', '0.0']
    assert told in said[4] and said[5].startswith('detector: ')


def test_a_run_is_not_resumed_by_another_method(chain, coco_folder):
    work, _, _ = chain
    config = work / 'pretrain' / 'pretrain.py'
    before = config.read_text()
    known = dict(steps=6, size=16, batch=5, work_dir=work / 'pretrain', resume=True)
    with pytest.raises(ConfigError, match='is one of ODIS, and this command would go on with it as GTSA'):
        pretrain(coco_folder, method='gtsa', **known)
    assert config.read_text() == before


def test_a_resumed_detector_keeps_the_record_of_its_start(chain, coco_folder, tmp_path):
    work, export, done = chain
    shutil.copytree(work / 'detector', tmp_path / 'run')
    config, other = tmp_path / 'run' / 'detector.py', tmp_path / 'other.pth'
    before = config.read_text()
    shutil.copy(export, other)
    for call, folder in ((finetune, tmp_path / 'run'), (pretrain, work / 'pretrain')):
        with pytest.raises(ConfigError, match=r'other\.pth: the run in .* started from '):
            call(coco_folder, init=other, steps=4, resume=True, work_dir=folder)
    known = dict(steps=3, size=64, batch=2, work_dir=tmp_path / 'run', resume=True, options=SMALL_DETECTOR)
    again = finetune(coco_folder, **known)
    assert again.metrics == done.metrics and f'backbone from {export}' in before
    after = Config.fromstring(
        config.read_text().replace(str(tmp_path / 'run'), str(work / 'detector')), '.py'
    ).to_dict()
    assert after == {**Config.fromstring(before, '.py').to_dict(), 'experiment_name': after['experiment_name']}
    log = max((tmp_path / 'run').glob('*/*.log')).read_text()
    assert '--resume: continuing from' in log and 'settings that differ' not in log


def test_recipe_and_length_follow_from_the_data(coco_folder):
    cfg, found = pretraining_config(coco_folder)
    assert (cfg.model.type, found.images, found.objects) == ('ODIS', 10, 20)
    assert cfg.train_dataloader.batch_size == 10  # no more than there are
    cfg, _ = pretraining_config(coco_folder, boxes='none', steps=30, batch=5)
    assert cfg.model.type == 'GTSA'
    assert 'max_iters' not in cfg
    for steps, told in ((30, '15 epochs of 2;'), (29, '15 epochs of 2, the last of 1;')):
        cfg, _ = pretraining_config(coco_folder, boxes='none', steps=steps, batch=5)
        assert any(note.startswith(f'length: {steps} iterations, {told}') for note in cfg.notes)
        assert dict(cfg.train_cfg) == dict(type='ResumableEpochLoop', max_iters=steps)
    cfg, _ = pretraining_config(coco_folder, boxes='none', steps=4, batch=2)
    assert any(note.startswith('length: 4 iterations, of the 5 of an epoch;') for note in cfg.notes)
    assert not any('optimizer step' in note for note in cfg.notes)
    options = {'optim_wrapper.accumulative_counts': 4}
    cfg, _ = pretraining_config(coco_folder, boxes='none', steps=30, batch=5, options=options)
    assert any(note.endswith('so the 30 of the run make 8 optimizer steps') for note in cfg.notes)
    cfg, _ = pretraining_config(coco_folder, boxes='none', steps=5, batch=2)
    assert any(note.startswith('length: 5 iterations, 1 epoch of 5;') for note in cfg.notes)
    cfg, _ = pretraining_config(coco_folder, boxes='none', steps=30, batch=5)
    assert cfg.param_scheduler[1].end == 30 and cfg.param_scheduler[1].begin == 3
    for size, matches in ((16, (2, 1)), (32, (8, 4)), (48, (18, 4)), (96, (18, 4))):
        cfg, _ = pretraining_config(coco_folder / 'train2017', method='gtsa', size=size)
        assert cfg.model.head.num_matches == matches
    cfg, found = pretraining_config(coco_folder / 'train2017', method='gtsa', size=96)
    assert cfg.model.type == 'GTSA' and found.objects == 0
    views = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'SamplePairViews').views
    assert [group['size'] for group in views] == [96, 48]


def test_small_objects_get_views_that_show_them(tmp_path, coco_folder):
    content = json.loads((coco_folder / 'annotations/instances_train2017.json').read_text())
    for annotation in content['annotations']:
        annotation['bbox'][2:] = [4, 4]
    path = tmp_path / 'tiny.json'
    path.write_text(json.dumps(content))
    cfg, _ = pretraining_config(coco_folder, boxes=path)
    told = next(note for note in cfg.notes if note.startswith('views:'))
    assert int(told.split('; ')[1].split('%')[0]) >= 90, told
    step = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'SampleViews')
    assert step.min_cover < 0.04


@pytest.mark.parametrize(
    'arguments, sentence',
    [
        (dict(method='mae'), r"no method 'mae': choose one of odis, gtsa, alfm, ibot"),
        (dict(boxes='gone.json'), r'annotation file gone\.json does not exist'),
        (dict(steps=1), r'steps must be 4 or more, got 1'),
        (dict(size=30), r'30 pixels cannot be cut into patches of 8'),
        (dict(steps=9, hours=1.0), r'give one of them'),
        (dict(hours=-1.0), 'hours must be above 0'),
    ],
)
def test_wrong_arguments_end_in_one_sentence(coco_folder, tmp_path, arguments, sentence):
    with pytest.raises((ConfigError, MissingFileError), match=sentence):
        pretrain(coco_folder, work_dir=tmp_path / 'run', **arguments)


def test_odis_without_objects_says_what_it_takes_for_one(coco_folder):
    for method, said in (('odis', True), ('gtsa', False)):
        cfg, _ = pretraining_config(coco_folder / 'train2017', boxes='none', method=method)
        assert any('each whole image counts as one' in note for note in cfg.notes) == said


def test_boxes_that_are_not_to_be_used_are_not(coco_folder):
    """The annotations tell which images there are; the same images alone give the same views."""
    init_default_scope('mmpretrain')
    drawn = []
    for data in (coco_folder, coco_folder / 'train2017'):
        cfg, _ = pretraining_config(data, boxes='none', method='odis', batch=20)
        assert 'batch: 10 in place of 20, as there are no more images' in cfg.notes
        drawn.append([DATASETS.build(cfg.train_dataloader.dataset)[i] for i in range(10)])
    for one, other in zip(*drawn):
        assert all(torch.equal(a, b) for a, b in zip(one['inputs'], other['inputs']))
        assert all(mask.all() for mask in one['data_samples']['object_mask'])


def test_a_missing_validation_split_is_cut_off(coco_folder, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(sys.modules[finetune.__module__], 'print_log', lambda line, **_: said.append(line))
    data = coco_folder / 'train2017'
    found = annotated_splits(data, coco_folder / 'annotations/instances_train2017.json', None, None)
    train, val, test = detector_splits(data, found, None, tmp_path, seed=0)
    names = [{i['file_name'] for i in json.loads(split.ann_file.read_text())['images']} for split in (train, val)]
    assert len(names[0]) == 8 and len(names[1]) == 2 and not names[0] & names[1] and test is None
    assert train.images == val.images == coco_folder / 'train2017'
    assert '2 of 10 images are held out' in said[0] and 'a pretraining on the same data has seen them' in said[0]


def test_what_was_held_out_stays_so_when_a_run_is_resumed(coco_folder, tmp_path):
    """By another seed, and after images were added."""
    data, file = coco_folder / 'train2017', tmp_path / 'all.json'
    content = json.loads((coco_folder / 'annotations/instances_train2017.json').read_text())
    held = []
    for seed, images, resume in ((0, 8, False), (0, 8, True), (3, 8, True), (0, 10, True), (3, 8, False)):
        file.write_text(json.dumps({**content, 'images': content['images'][:images]}))
        found = annotated_splits(data, file, None, None)
        train, val, _ = detector_splits(data, found, None, tmp_path / 'work', seed, resume)
        parts = [[i['id'] for i in json.loads(split.ann_file.read_text())['images']] for split in (train, val)]
        held.append(parts)
        assert train.images == val.images == data
    assert held[0] == held[1] == held[2] == held[3] != held[4]


def test_commands_refuse_with_exit_code_2(coco_folder, tmp_path, capsys):
    for main, argv, sentence in (
        (pretrain_main, ['--data', str(tmp_path / 'gone')], 'does not exist'),
        (finetune_main, ['--data', str(coco_folder / 'train2017')], 'those of its images lie in'),
        (predict_main, [str(tmp_path), str(coco_folder / 'val2017'), '--out', str(tmp_path / 'o')], 'holds 0 configs'),
        (views_main, ['no_such_config'], 'no config'),
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith('error: ') and sentence in said, said


def test_views_are_drawn_by_command(coco_folder, tmp_path):
    cfg, _ = pretraining_config(coco_folder)
    cfg.dump(str(tmp_path / 'own.py'))
    views_main([str(tmp_path / 'own.py'), '--out', str(tmp_path / 'pictures' / 'v.png'), '--images', '2'])
    assert {p.name for p in (tmp_path / 'pictures').iterdir()} == {'v_1.png', 'v_2.png'}


def test_the_command_measures_hours_and_runs_in_a_folder_of_any_name(coco_folder, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'my dätä'
    folder.mkdir()
    (folder / 'photos').symlink_to(coco_folder)
    monkeypatch.chdir(folder)
    options = [f'{key}={value}' for key, value in {**TINY, **UNSEEN}.items()]
    pretrain_main(['--data', 'photos', '--hours', '0.0003', '--size', '16', '--cfg-options', *options])
    said = capsys.readouterr().out
    assert 'per step on this machine' in said and 'pretrained backbone: work_dirs/pretrain/photos/epoch_' in said


def test_yolo_and_voc_folders_train_a_detector(tmp_path, coco_folder, capsys):
    content = json.loads((coco_folder / 'annotations/instances_train2017.json').read_text())
    yolo, voc = tmp_path / 'yolo', tmp_path / 'voc'
    (voc / 'Annotations').mkdir(parents=True)
    (voc / 'ImageSets' / 'Main').mkdir(parents=True)
    (voc / 'JPEGImages').symlink_to(coco_folder / 'train2017')
    stems = {'train': [], 'val': []}
    for i, image in enumerate(content['images']):
        part = 'val' if i % 5 == 0 else 'train'
        stem = image['file_name'].split('.')[0]
        stems[part].append(stem)
        boxes = [a for a in content['annotations'] if a['image_id'] == image['id']]
        for kind in ('images', 'labels'):
            (yolo / kind / part).mkdir(parents=True, exist_ok=True)
        (yolo / 'images' / part / image['file_name']).symlink_to(coco_folder / 'train2017' / image['file_name'])
        lines, objects = [], []
        for a in boxes:
            x, y, w, h = a['bbox']
            lines.append(f'{a["category_id"] - 1} {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}')
            name = ['bar', 'disc'][a['category_id'] - 1]
            corners = ''.join(
                f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), (x + 1, y + 1, x + w, y + h))
            )
            objects.append(f'<object><name>{name}</name><bndbox>{corners}</bndbox></object>')
        (yolo / 'labels' / part / f'{stem}.txt').write_text('\n'.join(lines))
        size = '<size><width>64</width><height>64</height><depth>3</depth></size>'
        xml = f'<annotation><filename>{image["file_name"]}</filename>{size}{"".join(objects)}</annotation>'
        (voc / 'Annotations' / f'{stem}.xml').write_text(xml)
    (yolo / 'data.yaml').write_text('train: images/train\nval: images/val\nnc: 2\nnames: [bar, disc]\n')
    for part, names in stems.items():
        (voc / 'ImageSets' / 'Main' / f'{part}.txt').write_text('\n'.join(names))
    for root in (yolo, voc):
        found = annotated_splits(root, None, None, None)
        train, val, _ = detector_splits(root, found, None, tmp_path / f'work_{root.name}', seed=0)
        read = [json.loads(split.ann_file.read_text()) for split in (train, val)]
        assert [len(part['images']) for part in read] == [8, 2], root.name
        assert sum(len(part['annotations']) for part in read) == len(content['annotations'])
        assert [c['name'] for c in read[0]['categories']] == ['bar', 'disc']
        for part, split in zip(read, (train, val)):
            for image in part['images']:
                assert (split.images / image['file_name']).is_file()
    capsys.readouterr()
    finetune(voc, steps=2, size=64, batch=2, work_dir=tmp_path / 'run', options=SMALL_DETECTOR, quiet=True)
    assert not capsys.readouterr().out.strip()
    assert (tmp_path / 'run' / 'metrics.json').is_file()


def test_lengths_in_epochs_become_shares_of_a_short_run(coco_folder):
    cfg, _ = pretraining_config(coco_folder, recipe='odis_vits_coco', steps=20, batch=5)
    assert cfg.train_cfg.max_iters == 20
    assert cfg.model.head.teacher_temp.warmup_epochs == 3 and cfg.default_hooks.schedule.freeze_prototypes_epochs == 0.5
    cfg, _ = pretraining_config(coco_folder, method='gtsa', steps=20, batch=5)
    assert cfg.model.head.correspondence_epoch == pytest.approx(1.1)
    for steps, interval in ((20, 10), (120, 20), (600, 50)):  # a fault is told after three measurements
        assert pretraining_config(coco_folder, steps=steps)[0].default_hooks.health.interval == interval
