"""The tools as a user starts them: training, resuming, two ranks, an installed wheel, and what goes wrong."""

import re
import runpy
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ddp_helpers import free_port
from helpers import ROOT, TINY_RUN, environment, forked, run_command_line
from odis_mm import apis
from odis_mm.cli import train as cli
from odis_mm.utils.errors import ConfigError


def run_tool(*words: str) -> None:
    sys.argv = list(words)
    runpy.run_path(words[0], run_name='__main__')


@pytest.mark.slow
def test_two_ranks_and_resume(demo, tmp_path, monkeypatch, capfd):
    said = run_command_line(
        [
            'bash',
            ROOT / 'tools/dist_train.sh',
            'odis_demo',
            2,
            '--work-dir',
            'out',
            '--cfg-options',
            *TINY_RUN,
            'train_dataloader.batch_size=2',
            'train_dataloader.num_workers=1',  # a worker that outlives the run would hang it
        ],
        tmp_path,
        environment(demo, PORT=str(free_port())),
    )
    assert 'rank 0 of 2 on 1 node (gloo, master ' in said
    assert 'lr = 0.001 x (2 ranks x 2 images x 1 accumulated)/128 = 3.125e-05 at a global batch of 4' in said
    assert re.search(r'eta: .* images/s: \d.* data_wait: \d', said)
    assert {p.name for p in tmp_path.glob('out/*.pth')} == {
        f'epoch_{n}{part}.pth' for n in (1, 2) for part in ('', '_backbone')
    }
    resolved = (tmp_path / 'out/odis_demo.py').read_text()
    # with the unscaled lr: the copy may be run again
    assert 'num_prototypes=48' in resolved and 'max_epochs=2' in resolved and 'lr=0.001' in resolved

    # one rank continues what two began; bf16 on the way
    exported = (tmp_path / 'out/epoch_2_backbone.pth').read_bytes()
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    cli.train_main(
        [
            'odis_demo',
            '--work-dir',
            str(tmp_path / 'out'),
            '--resume',
            '--amp',
            '--cfg-options',
            *TINY_RUN,
            'train_cfg.max_epochs=3',
        ]
    )
    said = capfd.readouterr()
    said = said.out + said.err
    assert (
        '--resume: continuing from' in said
        and 'epoch_2.pth' in said
        and 'Epoch(train) [3][4/4]' in said.replace('  ', ' ')
    )
    assert 'Epoch(train) [1]' not in said.replace('  ', ' ')
    assert 'autocast in bf16' in said
    assert (tmp_path / 'out/epoch_2_backbone.pth').read_bytes() == exported, (
        'the export of epoch 2 was overwritten with later weights'
    )
    state = torch.load(tmp_path / 'out/epoch_3.pth', map_location='cpu', weights_only=True)
    assert state['meta']['iter'] == 12 and state['meta']['epoch'] == 3


def test_a_folder_of_plain_images_trains_without_annotations(demo, tmp_path, capfd):
    photos = tmp_path / 'photos'
    shutil.copytree(Path(demo) / 'train2017', photos / 'nested/deep')
    cli.train_main(
        [
            'odis_demo',
            '--work-dir',
            str(tmp_path / 'out'),
            '--cfg-options',
            *TINY_RUN,
            'train_dataloader.dataset.type=ObjectDataset',
            f'train_dataloader.dataset.data_root={photos}',
            'train_dataloader.dataset.ann_file=',
            'train_dataloader.dataset.data_prefix=',
        ]
    )
    said = capfd.readouterr()
    assert 'Epoch(train) [2][4/4]' in (said.out + said.err).replace('  ', ' ')  # 16 images by 4
    assert (tmp_path / 'out/epoch_2_backbone.pth').is_file()


def test_tool_says_one_sentence_and_exits_with_2(demo, tmp_path):
    tool = partial(run_tool, str(ROOT / 'tools/train.py'), 'odis_demo', '--cfg-options', 'model.backbone.archh=3')
    done = forked(tool, tmp_path, env=environment(demo))
    assert done.returncode == 2
    told = "error: --cfg-options model.backbone.archh: model.backbone has no key 'archh'; did you mean 'arch'?"
    assert told in done.stderr.splitlines()
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'arguments, told',
    [
        (['--resume', 'gone.pth'], 'checkpoint gone.pth does not exist'),
        (['--launcher', 'pytorch'], 'tools/dist_train.sh'),
        (['--cfg-options', 'nonsense'], 'KEY=VALUE'),
        (
            ['--cfg-options', '+model.head.temperature=3'],
            "model.head: DistillationHead takes no argument 'temperature'",
        ),
        (['--cfg-options', *TINY_RUN, 'train_dataloader.batch_size=400'], 'fewer than one batch of 400'),
        (['--cfg-options', 'train_dataloader.dataset.data_prefix=gone/'], 'gone'),
        (['--cfg-options', 'train_dataloader.dataset.serialise_data=1'], "'serialize_data'"),
        (['--cfg-options', 'optim_wrapper=None'], 'has no optim_wrapper'),
        (['--cfg-options', 'optim_wrapper.type=SafeAmpOptimWrapper'], 'needs a GPU; use --amp bf16'),
        (['--cfg-options', 'model.backbone.out_indices=0'], 'model.backbone.out_indices=[0]'),
        (['--cfg-options', 'model.backbone.init_std=0'], 'model.backbone.init_std must be a positive number'),
        (['--cfg-options', 'model.backbone.drop_path_rate=1.5'], 'model.backbone.drop_path_rate must be a number'),
        (['--cfg-options', 'model.momentum={"_delete_":True,"start":0.9}'], 'model.momentum is dict(start, end)'),
        (['--cfg-options', 'model.neck.norm_cfg.type=BN'], "use dict(type='BN1d')"),
        (['--cfg-options', 'model.neck=None'], 'model.neck must be a dict'),
    ],
)
def test_bad_input_is_told_before_training(arguments, told, demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.train_main(['odis_demo', '--work-dir', str(tmp_path), *arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert stop.value.code == 2 and len(lines) == 1 and told in lines[0], lines


def test_a_detector_in_half_precision_on_a_cpu_is_refused(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    with pytest.raises(SystemExit):
        cli.train_main(['mask-rcnn_demo', '--amp', '--work-dir', str(tmp_path)])
    assert 'a detector trains in float32 on a CPU' in capsys.readouterr().err


def test_a_detector_in_half_precision_on_a_gpu_is_one_of_fp16(monkeypatch):
    monkeypatch.setattr(apis, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(apis, 'use_resume', lambda cfg, resume: chosen.append(dict(cfg.optim_wrapper)) or 1 / 0)
    chosen = []
    for name, amp in (('mask-rcnn_demo', True), ('odis_demo', True), ('odis_demo', 'fp16')):
        with pytest.raises(ZeroDivisionError):
            apis.train(name, amp=amp)
    assert [wrapper['type'] for wrapper in chosen] == [
        'mmpretrain.SafeAmpOptimWrapper',
        'mmpretrain.AutocastOptimWrapper',
        'mmpretrain.SafeAmpOptimWrapper',
    ]
    with pytest.raises(ConfigError, match="bf16 rounds a detector's boxes .* use --amp fp16"):
        apis.train('mask-rcnn_demo', amp='bf16')


@pytest.mark.parametrize(
    'name, content, told',
    [
        ('one.xml', '<annotation/>', 'describes one image (Pascal VOC, CVAT)'),
        ('train.txt', '000001\n', "begins with '000001', which is no image path"),
    ],
)
def test_annotations_of_other_tools_are_told(name, content, told, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    data = dict(type='ObjectDataset', data_root=tmp_path, ann_file=name, data_prefix='')
    options = [f'train_dataloader.dataset.{key}={value}' for key, value in data.items()]
    with pytest.raises(SystemExit) as stop:
        cli.train_main(['odis_demo', '--work-dir', str(tmp_path / 'out'), '--cfg-options', *TINY_RUN, *options])
    said = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and said.startswith('error: ') and told in said and 'COCO style first' in said


def test_pretraining_has_nothing_to_test(tmp_path, capsys):
    torch.save({}, tmp_path / 'epoch_1.pth')
    with pytest.raises(SystemExit):
        cli.test_main(['odis_demo', str(tmp_path / 'epoch_1.pth')])
    assert 'has no test_dataloader' in capsys.readouterr().err


def test_show_dir_needs_no_detector_in_memory(tmp_path):
    """In a process of its own: once mmdet is imported its hook is known."""
    code = (
        'import sys; from odis_mm import apis; from odis_mm.cli import train; from odis_mm.config import load_config\n'
        'apis.test = lambda config, checkpoint, options, **_: print(load_config(config, options).default_hooks)\n'
        'train.test_main(sys.argv[1:])'
    )
    torch.save({}, tmp_path / 'a.pth')
    words = [sys.executable, '-c', code, 'mask-rcnn_demo', 'a.pth', '--show-dir', 'shown']
    said = run_command_line(words, tmp_path, environment())
    assert "'draw': True" in said and str(tmp_path / 'shown') in said


def test_show_dir_is_for_detectors(tmp_path, capsys):
    torch.save({}, tmp_path / 'a.pth')
    with pytest.raises(SystemExit):
        cli.test_main(['odis_demo', str(tmp_path / 'a.pth'), '--show-dir', str(tmp_path / 'shown')])
    assert 'odis_demo has no hook that draws predictions' in capsys.readouterr().err
