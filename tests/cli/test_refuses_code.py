"""A file that would run code when it is read runs none, wherever it goes in, and one sentence says so.

Configs are Python and are meant to run; everything else that a user hands over is data.
"""

import functools
import http.server
import inspect
import json
import logging
import os
import re
import threading
from contextlib import nullcontext
from pathlib import Path

import cv2
import mmengine.runner.runner
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmpretrain.registry import MODELS

from helpers import ARCH, make_odis, make_vit
from odis_mm import apis, extract_object_features
from odis_mm.cli import checkpoints as commands
from odis_mm.cli import rotation
from odis_mm.cli import train as cli
from odis_mm.datasets import ObjectDataset
from odis_mm.datasets.demo import ensure_demo
from odis_mm.recipes import backbone_settings
from odis_mm.transfer import (
    CheckpointError,
    build_backbone,
    closed_to_code,
    load_backbone,
    load_local,
    read_checkpoint,
    read_meta,
    transfer,
)
from odis_mm.transfer.checkpoint import restore
from odis_mm.utils.errors import USER_ERROR, ConfigError

VIT = dict(type='VisionTransformer', arch=ARCH, img_size=32, patch_size=8, out_type='cls_token')
REASON = r'is refused: restoring it would run code from the file \((?:posix|nt)\.mkdir\); save its state_dict alone'


@pytest.fixture(autouse=True)
def no_reports(monkeypatch):
    """Of each run's environment and config: seconds, and nothing but text."""
    monkeypatch.setattr(mmengine.runner.runner, 'collect_env', lambda: {})
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: ''))


class Danger:
    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """Made by any code that runs; what holds it must have run none."""
    marker = tmp_path / 'it_ran'
    yield marker
    assert not marker.exists()


@pytest.fixture
def danger(tmp_path, marker):
    """A checkpoint that looks like one of ours and has everything that its readers want."""
    path = tmp_path / 'danger.pth'
    torch.save(
        dict(state_dict=make_odis().state_dict(), meta=dict(num_heads=4, epoch=1, iter=4), optimizer=Danger(marker)),
        path,
    )
    return path


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return ensure_demo(tmp_path_factory.mktemp('demo') / 'set', num_train=8, num_val=4, size=64)


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp('labelled')
    for part in ('train', 'val'):
        for label in ('a', 'b'):
            (root / part / label).mkdir(parents=True)
            cv2.imwrite(str(root / part / label / '0.png'), np.full((40, 40, 3), 90, np.uint8))
    return root


TINY = [
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_cfg.max_epochs=2',
    'param_scheduler.0.end=1',
    'param_scheduler.1.begin=1',
    'model.backbone.arch.num_layers=2',
    'model.neck.num_prototypes=16',
    'model.head.num_prototypes=16',
]


def test_the_file_is_dangerous(tmp_path):
    """Read without care, it does what the others look for."""
    torch.save(Danger(tmp_path / 'ran'), tmp_path / 'x.pth')
    torch.load(tmp_path / 'x.pth', weights_only=False)
    assert (tmp_path / 'ran').is_dir()


READERS = dict(
    mmengine_load_checkpoint=lambda path: load_checkpoint(torch.nn.Linear(1, 1), path),
    mmengine_loader=lambda path: CheckpointLoader.load_checkpoint(path, 'cpu'),
    mmengine_pretrained=lambda path: MODELS.build(
        {**VIT, 'init_cfg': dict(type='Pretrained', checkpoint=path)}
    ).init_weights(),
    verified_pretrained=lambda path: MODELS.build(
        {**VIT, 'init_cfg': dict(type='VerifiedPretrained', checkpoint=path)}
    ).init_weights(),
    our_loader=load_local,
    read_checkpoint=read_checkpoint,
    read_meta=read_meta,
    load_backbone=lambda path: load_backbone(make_vit(), path),
    build_backbone=build_backbone,
    transfer=lambda path: transfer(path, f'{path}.out.pth', 'timm'),
    features=lambda path: extract_object_features(
        path, [np.zeros((32, 32, 3), np.uint8)], [np.array([[0.0, 0.0, 9.0, 9.0]])]
    ),
    rotation=lambda path: rotation.load_model('gtsa_demo', path),
    shape_for_a_detector=lambda path: backbone_settings(path),
)


@pytest.mark.parametrize('name', READERS)
def test_functions_refuse(name, danger):
    init_default_scope('mmpretrain')
    with (
        closed_to_code() if name.startswith('mmengine') else nullcontext(),
        pytest.raises(CheckpointError, match=REASON),
    ):
        READERS[name](str(danger))


def test_mmengine_is_left_alone_outside_our_entry_points():
    """And everything that is replaced within them exists upstream: a version that renames it fails here."""
    before = dict(CheckpointLoader._schemes), mmengine_checkpoint.load_url, CheckpointLoader._schemes['']
    assert before[2].__module__.startswith('mmengine') and before[1].__module__.startswith(('mmengine', 'torch'))
    with closed_to_code():
        assert CheckpointLoader._schemes[''] is load_local and mmengine_checkpoint.load_url is not before[1]
        with closed_to_code():
            assert mmengine_checkpoint.load_url.load is before[1], 'never wrapped twice'
    assert (dict(CheckpointLoader._schemes), mmengine_checkpoint.load_url) == before[:2]
    source = inspect.getsource(mmengine_checkpoint)
    assert len(re.findall(r'\bload_url\(', source)) and not re.findall(
        r'(?<!_safe_)torch\.load\(', _outside_of_safe_load(source)
    )


def _outside_of_safe_load(source: str) -> str:
    """mmengine's module without the function of the forks that is replaced as a whole, and, upstream, without what that
    function became."""
    # upstream loads files in the loaders of schemes, of which ours takes the one for files
    if '_safe_torch_load' not in source:
        return ''
    function = inspect.getsource(mmengine_checkpoint._safe_torch_load)
    return source.replace(function, '')


def command_lines(path: str, data: str, labelled: str, out: str) -> dict:
    tiny = ['--work-dir', out, '--cfg-options', *TINY, f'train_dataloader.dataset.data_root={data}']
    probe = [
        '--work-dir',
        out,
        '--cfg-options',
        f'train_dataloader.dataset.data_root={labelled}',
        f'val_dataloader.dataset.data_root={labelled}',
        'train_dataloader.batch_size=1',
        'train_dataloader.num_workers=0',
        'val_dataloader.num_workers=0',
    ]
    detector = [
        '--work-dir',
        out,
        '--cfg-options',
        f'train_dataloader.dataset.data_root={data}',
        f'test_dataloader.dataset.data_root={data}',
        f'val_dataloader.dataset.data_root={data}',
        f'val_evaluator.ann_file={data}/annotations/instances_val2017.json',
        f'test_evaluator.ann_file={data}/annotations/instances_val2017.json',
    ]
    return dict(
        train_resume=(cli.train_main, ['odis_demo', '--resume', path, *tiny]),
        train_load_from=(cli.train_main, ['odis_demo', *tiny, f'load_from={path}']),
        train_init_cfg=(
            cli.train_main,
            [
                'odis_demo',
                *tiny,
                '+model.backbone.init_cfg.type=VerifiedPretrained',
                f'+model.backbone.init_cfg.checkpoint={path}',
            ],
        ),
        linear_probe=(cli.train_main, ['linear_probe/vits_in1k', *probe, f'model.backbone.init_cfg.checkpoint={path}']),
        detector=(cli.train_main, ['mask-rcnn_demo', *detector, f'model.backbone.init_cfg.checkpoint={path}']),
        test=(cli.test_main, ['mask-rcnn_demo', path, *detector]),
        transfer=(commands.transfer_main, [path]),
        transfer_to=(commands.transfer_main, [path, f'{out}/x.pth', '--to', 'mmpretrain']),
        knn=(commands.knn_main, [path, '--data', labelled, '--size', '32']),
        regions=(commands.regions_main, [path, '--data', data, '--size', '32']),
        features=(
            commands.features_main,
            [
                path,
                '--data',
                data,
                '--ann-file',
                'annotations/instances_val2017.json',
                '--images',
                'val2017',
                '--out',
                f'{out}/f.npz',
            ],
        ),
        rotation=(rotation.rotation_main, ['gtsa_demo', path, '--data-root', data]),
    )


@pytest.mark.parametrize('name', command_lines('', '', '', ''))
def test_commands_refuse_in_one_sentence(name, danger, data, labelled, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv('ODIS_MM_DEBUG', raising=False)
    # loggers of other tests still hold their captured, closed streams
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    if name in ('detector', 'test'):
        pytest.importorskip('mmdet')
    main, arguments = command_lines(str(danger), data, str(labelled), str(tmp_path / 'out'))[name]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == USER_ERROR and said[-1].startswith('error: ') and str(danger) in said[-1], said[-5:]
    assert 'it would run code from the file (' in said[-1] and 'Traceback' not in '\n'.join(said)


def test_the_latest_checkpoint_of_a_work_dir_is_refused(danger, data, tmp_path, capsys):
    """--resume without a name takes the dangerous file, and refuses it."""
    (tmp_path / 'run').mkdir()
    danger.rename(tmp_path / 'run/epoch_1.pth')
    with pytest.raises(SystemExit):
        cli.train_main(
            [
                'odis_demo',
                '--resume',
                '--work-dir',
                str(tmp_path / 'run'),
                '--cfg-options',
                *TINY,
                f'train_dataloader.dataset.data_root={data}',
            ]
        )
    assert 'epoch_1.pth is refused' in capsys.readouterr().err


class Harmless:
    def __reduce__(self):
        return os.path.basename, ('a/trusted',)


def test_a_user_may_trust_a_file_but_not_a_download(tmp_path, monkeypatch):
    path = tmp_path / 'trusted.pth'
    torch.save(dict(state_dict=dict(w=torch.ones(2)), name=Harmless()), path)
    with pytest.raises(CheckpointError, match='ODIS_MM_TRUST_CHECKPOINTS=1 if you trust'):
        read_checkpoint(path)
    monkeypatch.setenv('ODIS_MM_TRUST_CHECKPOINTS', '1')
    with pytest.warns(UserWarning, match='trusted.pth: code from the file is run'):
        assert torch.equal(read_checkpoint(path)['w'], torch.ones(2))
    with pytest.raises(CheckpointError, match='is refused'):
        restore(lambda: torch.load(path, weights_only=True), 'checkpoint of a server')


def test_downloads_are_refused(danger, tmp_path, monkeypatch):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f'http://127.0.0.1:{server.server_port}/danger.pth'
        with closed_to_code(), pytest.raises(CheckpointError, match=REASON):
            CheckpointLoader.load_checkpoint(url, 'cpu')
    finally:
        server.shutdown()
        server.server_close()
    assert list((tmp_path / 'hub').rglob('danger.pth')), 'it was read'


@pytest.mark.parametrize('name', ['boxes.json', 'boxes.pkl', 'list.txt', 'boxes.pth', 'boxes.npy'])
def test_annotation_files_are_no_pickles(name, danger, data, tmp_path):
    danger.rename(tmp_path / name)
    with pytest.raises(ValueError, match=str(tmp_path / name)):
        ObjectDataset(data_root=data, ann_file=str(tmp_path / name), data_prefix='train2017')


def test_images_are_no_pickles(danger, data, tmp_path, capsys):
    for name in ('a.jpg', 'b.png'):
        (tmp_path / name).write_bytes(danger.read_bytes())
    dataset = ObjectDataset(data_root=str(tmp_path), pipeline=[dict(type='LoadObjectImage')])
    for i in range(2):
        with pytest.raises(ValueError, match='cannot be decoded'):
            dataset[i]


def test_harmless_files_are_read(tmp_path):
    """Tensors, plain values, and what mmengine's own checkpoints hold."""
    torch.save(
        dict(state_dict=make_vit().state_dict(), meta=dict(num_heads=4, note=['plain', 1, None])), tmp_path / 'good.pth'
    )
    with closed_to_code():
        assert CheckpointLoader.load_checkpoint(str(tmp_path / 'good.pth'))['meta']['note'] == ['plain', 1, None]
        with pytest.raises(CheckpointError, match='no checkpoint'):
            CheckpointLoader.load_checkpoint(str(tmp_path / 'gone.pth'))
    with pytest.raises(ConfigError, match='no checkpoint'):
        apis.test('mask-rcnn_demo', str(tmp_path / 'gone.pth'))


def test_a_json_that_is_no_json_is_named(tmp_path, data):
    (tmp_path / 'x.json').write_text(json.dumps(dict(images=[], annotations=[])))
    with pytest.raises(ValueError, match='x.json has no images'):
        ObjectDataset(data_root=data, ann_file=str(tmp_path / 'x.json'), data_prefix='train2017')
