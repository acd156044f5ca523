"""The tools as a user starts them: training, resuming, two ranks, an installed wheel, and what goes wrong."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner

from odis_mm import apis, cli
from odis_mm.datasets.demo import ensure_demo
from odis_mm.engine.hooks import SafeCheckpointHook
from odis_mm.engine.hooks import checkpoint as safe
from odis_mm.transfer import CheckpointError, FileWriteError, load_local
from odis_mm.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
TINY = [  # a ViT of two blocks on 32 pixel views
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_cfg.max_epochs=2',
    'param_scheduler.0.end=1',
    'param_scheduler.1.begin=1',
    'model.backbone.arch.num_layers=2',
    'model.neck.num_prototypes=48',
    'model.head.num_prototypes=48',
    'default_hooks.logger.interval=1',
]


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> str:
    """Sixteen images."""
    return ensure_demo(tmp_path_factory.mktemp('demo') / 'set', num_train=16, num_val=2, size=64)


def environment(demo: str, **extra: str) -> dict:
    """Of a subprocess: this interpreter, one thread, no checkout on the path unless asked for."""
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'ODIS_MM_DEBUG')}
    return {
        **env,
        'ODIS_DEMO_ROOT': demo,
        'OMP_NUM_THREADS': '1',
        'PYTHON': sys.executable,
        'CUDA_VISIBLE_DEVICES': '',
        **extra,
    }


def run(command, cwd, env) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_two_ranks_and_resume(demo, tmp_path, monkeypatch, capfd):
    said = run(
        [
            'bash',
            ROOT / 'tools/dist_train.sh',
            'odis_demo',
            2,
            '--work-dir',
            'out',
            '--cfg-options',
            *TINY,
            'train_dataloader.batch_size=2',
            'train_dataloader.num_workers=1',  # a worker that outlives the run would hang it
        ],
        tmp_path,
        environment(demo),
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
            *TINY,
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
            *TINY,
            'train_dataloader.dataset.type=ObjectDataset',
            f'train_dataloader.dataset.data_root={photos}',
            'train_dataloader.dataset.ann_file=',
            'train_dataloader.dataset.data_prefix=',
        ]
    )
    said = capfd.readouterr()
    assert 'Epoch(train) [2][4/4]' in (said.out + said.err).replace('  ', ' ')  # 16 images by 4
    assert (tmp_path / 'out/epoch_2_backbone.pth').is_file()


def test_installed_wheel_from_another_folder(demo, tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'site'
    tracked = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip('not a git checkout')
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(('docs/', 'tests/')):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    run([*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', tmp_path, '.'], source, environment(demo))
    run([*pip, 'install', '--no-deps', '--target', target, next(tmp_path.glob('*.whl'))], tmp_path, environment(demo))
    shutil.rmtree(source)
    assert (target / 'odis_mm/.mim/tools/dist_train.sh').is_file() and list(
        (target / 'odis_mm/.mim/configs').rglob('mask-rcnn_*.py')
    )
    said = run(
        [
            sys.executable,
            '-m',
            'odis_mm',
            'train',
            'odis_demo',
            '--resume',
            '--work-dir',
            'out',
            '--cfg-options',
            *TINY,
        ],
        tmp_path,
        environment(demo, PYTHONPATH=str(target)),
    )
    assert 'there is no checkpoint in out, so training starts at the beginning' in said
    assert 'rank 0 of 1 on 1 node' in said
    assert (tmp_path / 'out/epoch_2.pth').is_file()


def test_tool_says_one_sentence_and_exits_with_2(demo, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/train.py', 'odis_demo', '--cfg-options', 'model.backbone.archh=3'],
        cwd=tmp_path,
        env=environment(demo),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    told = "error: --cfg-options model.backbone.archh: model.backbone has no key 'archh'; did you mean 'arch'?"
    assert told in done.stderr.splitlines()
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'arguments, told',
    [
        (['--resume', 'gone.pth'], "no checkpoint 'gone.pth'"),
        (['--launcher', 'pytorch'], 'tools/dist_train.sh'),
        (['--cfg-options', 'nonsense'], 'KEY=VALUE'),
        (
            ['--cfg-options', '+model.head.temperature=3'],
            "model.head: DistillationHead takes no argument 'temperature'",
        ),
        (['--cfg-options', *TINY, 'train_dataloader.batch_size=400'], 'fewer than one batch of 400'),
        (['--cfg-options', 'train_dataloader.dataset.data_prefix=gone/'], 'gone'),
        (['--cfg-options', 'train_dataloader.dataset.serialise_data=1'], "'serialize_data'"),
    ],
)
def test_bad_input_is_told_before_training(arguments, told, demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.train_main(['odis_demo', '--work-dir', str(tmp_path), *arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert stop.value.code == 2 and len(lines) == 1 and told in lines[0], lines


def test_work_dir_without_permission(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='cannot write to the work dir .*choose another one with --work-dir'):
        apis.train('odis_demo', work_dir=str(tmp_path / 'file' / 'below'))

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(apis.tempfile, 'TemporaryFile', refuse)
    with pytest.raises(ConfigError, match='Permission denied'):
        apis.train('odis_demo', work_dir=str(tmp_path))


def test_pretraining_has_nothing_to_test(capsys):
    with pytest.raises(SystemExit):
        cli.test_main(['odis_demo', 'epoch_1.pth'])
    assert 'has no test_dataloader' in capsys.readouterr().err


def test_only_deliberate_errors_lose_their_traceback(tmp_path):

    def caught(call):
        try:
            call()
        except Exception as error:
            return cli.explain(error)

    assert caught(lambda: 1 / 0) is None
    assert caught(lambda: apis.AMP_WRAPPERS['fp64']) is None  # an accident, even one with our objects
    assert caught(lambda: open(tmp_path / 'gone.json')).startswith(f'{tmp_path}/gone.json: No such file')
    assert 'no space left' in caught(lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'No space left on device')))
    line = next(
        n
        for n, text in enumerate(Path(apis.__file__).read_text().splitlines(), 1)
        if text.lstrip().startswith('raise ConfigError')
    )
    text = (
        'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n'
        f'  File "{apis.__file__}", line {{}}, in f\n    raise\nValueError: image x.jpg is\ntruncated'
    )
    assert cli._from_worker(text.format(line)) == 'image x.jpg is truncated'
    assert cli._from_worker(text.format(1)) is None


def test_latest_checkpoint(tmp_path):
    assert apis.latest_checkpoint(str(tmp_path)) is None
    for name in ('epoch_2.pth', 'epoch_10.pth', 'epoch_10_backbone.pth', 'epoch_11.pth.part'):
        torch.save({}, tmp_path / name)
    assert apis.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_10.pth')
    (tmp_path / 'last_checkpoint').write_text('/where/the/folder/was/epoch_2.pth')
    assert apis.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')
    (tmp_path / 'last_checkpoint').write_text('')  # killed or out of space while it was written
    assert apis.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_10.pth')


@MODELS.register_module(name='ToyOfTools', force=True)
class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())


def toy_runner(work_dir, **changes) -> Runner:
    dataset = [dict(inputs=torch.ones(2)) for _ in range(4)]
    return Runner(
        **{
            **dict(
                model=Toy(),
                work_dir=str(work_dir),
                train_dataloader=dict(batch_size=2, dataset=dataset, sampler=dict(type=DefaultSampler, shuffle=False)),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
                train_cfg=dict(by_epoch=True, max_epochs=4),
                log_level='ERROR',
                default_hooks=dict(checkpoint=dict(type=SafeCheckpointHook, max_keep_ckpts=1, interval=1)),
                experiment_name=f'toy_{id(changes)}',
            ),
            **changes,
        }
    )


def test_disk_full_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    written = []

    def fsync(handle, real=os.fsync):
        if os.path.isfile(f'/proc/self/fd/{handle}'):
            written.append(sorted(p.name for p in tmp_path.glob('epoch_*')))
            if len(written) == 3:
                raise OSError(errno.ENOSPC, 'No space left on device')
        real(handle)

    monkeypatch.setattr(safe.os, 'fsync', fsync)
    with pytest.raises(FileWriteError, match='No space left on device.*--resume .*last good checkpoint: .*epoch_2.pth'):
        toy_runner(tmp_path).train()
    assert written == [
        ['epoch_1.pth.part'],
        ['epoch_1.pth', 'epoch_2.pth.part'],
        ['epoch_2.pth', 'epoch_3.pth.part'],
    ], 'removed too early'
    assert [p.name for p in tmp_path.glob('epoch_*')] == ['epoch_2.pth']
    assert apis.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')

    monkeypatch.undo()
    (tmp_path / 'epoch_9.pth.part').touch()  # of a killed process
    runner = toy_runner(tmp_path, load_from=apis.latest_checkpoint(str(tmp_path)), resume=True)
    runner.train()
    assert runner.epoch == 4 and [p.name for p in tmp_path.glob('epoch_*')] == ['epoch_4.pth']


def test_scaled_lr_counts_accumulation(tmp_path):
    runner = toy_runner(
        tmp_path,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=4),
        auto_scale_lr=dict(enable=True, base_batch_size=16),
    )
    assert apis.scale_lr(runner) == 'lr = 0.1 x (1 ranks x 2 images x 4 accumulated)/16 = 0.05 at a global batch of 8'
    runner.train()
    assert runner.optim_wrapper.get_lr()['lr'] == [0.05]


def test_runs_of_one_process_within_a_second_keep_their_own_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'strftime', lambda *_: '20260101_000000')
    logs = []
    for name in ('first', 'second'):
        cfg = Config(dict(model=dict(type='ToyOfTools'), work_dir=str(tmp_path / name)), filename=__file__)
        runner = apis._build_runner(cfg)
        runner.logger.info(f'said by the {name}')
        runner.message_hub.update_info('who', name)
        assert 'experiment_name' not in cfg
        logs.append(runner)
    for name, runner in zip(('first', 'second'), logs):
        text = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
        assert [n for n in ('first', 'second') if f'said by the {n}' in text] == [name]
        assert runner.message_hub.get_info('who') == name


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save(dict(state_dict={}, extra=subprocess.Popen), tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='evil.pth is refused: restoring it would run code'):
        load_local(str(tmp_path / 'evil.pth'))


def test_a_value_too_nested_for_an_option_is_told():
    with pytest.raises(ConfigError, match='anything nested deeper'):
        cli._options(['pipeline=[[dict(type="X",scales=[(480,320)])]]'])
