"""Stopped in the middle of an epoch and continued by another number of processes: each image once."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ddp_helpers import free_port
from helpers import forked

pytestmark = pytest.mark.slow

IMAGES, BATCH = 16, 2  # per rank


@HOOKS.register_module(force=True)
class Recorder(Hook):
    """Notes each image that was trained on, and sends SIGTERM to the last rank in one iteration."""

    def __init__(self, file: str, stop_at: int = 0):
        self.file, self.stop_at = file, stop_at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with open(f'{self.file}.{runner.rank}', 'a') as f:
            f.writelines(f'{runner.epoch} {image}\n' for image in data_batch['data_samples']['img_id'].tolist())
        if runner.iter + 1 == self.stop_at and runner.rank == runner.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def program(folder: Path) -> None:
    """All runs, each rank a process; prints the exit codes of the ranks."""
    from odis_mm import cli
    from odis_mm.config import load_config
    from odis_mm.datasets.demo import ensure_demo
    from robustness.fault_campaign import OPTIONS

    os.environ['ODIS_DEMO_ROOT'] = ensure_demo(folder / 'data', num_train=IMAGES, num_val=2, size=64)

    def ranks(name: str, world: int, run: str, stop_at: int = 0) -> list:
        cfg = load_config('odis_demo', {**OPTIONS, 'train_dataloader.batch_size': BATCH, 'train_cfg.max_epochs': 2})
        cfg.custom_hooks.append(dict(type='Recorder', file=str(folder / name), stop_at=stop_at))
        config = folder / f'{name}.py'
        cfg.dump(str(config))
        port = free_port()
        started = []
        for rank in range(world):
            pid = os.fork()
            if not pid:
                code = 70
                try:
                    log = os.open(folder / f'{name}.log.{rank}', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                    os.dup2(log, 1)
                    os.dup2(log, 2)
                    os.environ.update(
                        RANK=str(rank),
                        LOCAL_RANK=str(rank),
                        WORLD_SIZE=str(world),
                        MASTER_PORT=str(port),
                        MASTER_ADDR='127.0.0.1',
                    )
                    cli.main(
                        ['train', str(config), '--work-dir', str(folder / run), '--resume', 'auto']
                        + ['--launcher', 'pytorch'] * (world > 1)
                    )
                    code = 0
                except SystemExit as stop:
                    code = stop.code
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            started.append(pid)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]

    def copy(run: str, to: str) -> None:
        subprocess.run(['cp', '-r', folder / run, folder / to], check=True)
        (folder / to / 'last_checkpoint').write_text(Path((folder / run / 'last_checkpoint').read_text()).name)

    codes = dict(two=ranks('two', 2, 'a', stop_at=6))  # two of the second epoch's four iterations
    copy('a', 'b')
    codes['two_to_one'] = ranks('two_to_one', 1, 'a')
    codes['two_to_four'] = ranks('two_to_four', 4, 'b')
    codes['one'] = ranks('one', 1, 'c', stop_at=10)  # two of eight
    codes['one_to_two'] = ranks('one_to_two', 2, 'c')
    print('codes', json.dumps(codes))


def test_each_image_once_on_another_number_of_ranks(tmp_path):
    done = forked(partial(program, tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads(done.stdout.rpartition('codes ')[2])
    logs = {path.name: path.read_text() for path in tmp_path.glob('*.log.*')}
    assert codes == dict(two=[75, 75], two_to_one=[0], two_to_four=[0] * 4, one=[75], one_to_two=[0, 0]), logs

    def drawn(name, epoch=1) -> Counter:
        lines = [line.split() for path in tmp_path.glob(f'{name}.[0-9]') for line in path.read_text().splitlines()]
        return Counter(int(image) for at, image in lines if int(at) == epoch)

    assert set(drawn('two', 0).values()) == {1} and len(drawn('two', 0)) == IMAGES
    cases = (
        ('two', 'two_to_one', 8, '2 ranks', 1),
        ('two', 'two_to_four', 8, '2 ranks', 4),
        ('one', 'one_to_two', 4, '1 rank', 2),
    )
    for before, after, done, was, now in cases:
        assert sum(drawn(before).values()) == done and not drawn(after, 0)
        both = drawn(before) + drawn(after)
        assert set(both.values()) == {1} and len(both) == IMAGES, (after, both)
        assert (
            f'epoch 2 goes on after {done} of {IMAGES} images (written by {was}, now {now}): none '
            'is lost or drawn twice' in logs[f'{after}.log.0']
        )
