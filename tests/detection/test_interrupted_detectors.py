"""Ctrl-C in a detector's training, validation and test, as a terminal sends it: to the run and its loader workers."""

import signal
import time
from functools import partial
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from helpers import forked_in_group, write_noise_coco
from odis_mm import apis
from odis_mm.datasets.layout import find_splits
from odis_mm.recipes import detector_config
from odis_mm.transfer import load_local
from odis_mm.utils.errors import run_command

pytest.importorskip('mmcv._ext')


@HOOKS.register_module(force=True)
class WaitForSignal(Hook):
    """Says that the first batch of a part has begun, and lets the signal arrive; notes the parts in a file."""

    def __init__(self, part: str):
        self.part = part

    def _note(self, runner, part: str, batch: int) -> None:
        with open(Path(runner.work_dir, 'parts'), 'a') as file:
            file.write(f'{part}{runner.iter}.{batch} ')
        if part == self.part:
            Path(runner.work_dir, 'near').touch()
            end = time.monotonic() + 600
            while Path(runner.work_dir, 'near').exists() and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.5)  # a worker that follows the signal, too, is gone by now

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._note(runner, 'train', batch_idx)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self._note(runner, 'val', batch_idx)

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        self._note(runner, 'test', batch_idx)


def config(data: str, at: str):
    """A Faster R-CNN for two iterations, with a validation of three batches after the last; mmdet's loader workers."""
    splits = find_splits(data)
    options = {
        'custom_hooks': [dict(type='WaitForSignal', part=at)],
        'model.backbone.arch.num_layers': 1,
        'model.backbone.out_indices': [0],
        'model.roi_head.bbox_head.fc_out_channels': 16,
        'val_dataloader.batch_size': 1,
        'test_dataloader.batch_size': 1,
        'default_hooks.logger.interval': 1,
    }
    return detector_config(splits['train'], splits['val'], size=32, iterations=2, batch=2, options=options)


def train(data: str, work_dir: str, at: str = '', resume=None):
    run_command(lambda: apis.train(config(data, at), work_dir=work_dir, resume=resume))


def test(data: str, work_dir: str, at: str = ''):
    run_command(lambda: apis.test(config(data, at), f'{work_dir}/iter_2.pth', work_dir=work_dir))


test.__test__ = False


def parts(work: Path) -> str:
    text = (work / 'parts').read_text().strip()
    (work / 'parts').unlink()
    return text


def test_ctrl_c_is_answered_in_training_validation_and_test(tmp_path):
    data, work = write_noise_coco(tmp_path / 'data', (('train', 4), ('val', 3))), tmp_path / 'run'
    work.mkdir()
    said = []

    def process(call, *arguments, number=None) -> int:
        code = forked_in_group(partial(call, str(data), str(work), *arguments), tmp_path, work / 'near', number)
        said.append((tmp_path / 'out').read_text() + (tmp_path / 'err').read_text())
        return code

    assert process(train, 'train', number=signal.SIGINT) == 130
    assert parts(work) == 'train0.0' and (work / 'epoch_0_iter_1.pth').is_file()

    assert process(train, 'val', 'latest', number=signal.SIGINT) == 130
    assert parts(work) == 'train1.1 val2.0', 'left after the first of three batches'
    assert [p.name for p in work.glob('*.pth')] == ['iter_2.pth']
    assert load_local(str(work / 'iter_2.pth'), 'cpu')['validation_due']

    assert process(train, '', 'latest') == 0
    assert parts(work) == 'val2.0 val2.1 val2.2', 'the resumed run begins with the validation'
    assert process(test, 'test', number=signal.SIGINT) == 130
    assert parts(work) == 'test0.0'
    text = ''.join(said)
    assert 'Traceback' not in text, text
    assert '--resume continues with the validation, from its beginning' in text
    assert 'interrupted by Ctrl-C' in text
