"""Checkpoints: the last good one stays until the next is verified; damaged ones are found and skipped."""

import errno
import io
import logging
import os
import random

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend

from helpers import toy_runner
from odis_mm import apis
from odis_mm.config import load_config
from odis_mm.engine.hooks import SafeCheckpointHook
from odis_mm.engine.hooks import checkpoint as safe
from odis_mm.engine.resume import damage, find_checkpoint
from odis_mm.transfer import CheckpointError, FileWriteError, load_local
from odis_mm.utils.errors import ConfigError

CONTENT = dict(state_dict={f'layer{i}.weight': torch.arange(20.0) + i for i in range(3)}, meta=dict(epoch=1))


def saved(content=CONTENT) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


WHOLE = saved()
DAMAGED = {
    'empty': b'',
    'truncated': WHOLE[:-40],
    'half': WHOLE[: len(WHOLE) // 2],
    'garbage': os.urandom(2000),
    'zeroed': bytes(len(WHOLE)),
    'text': b'error 404',
}


@pytest.mark.parametrize('kind', DAMAGED)
def test_damage_is_found(tmp_path, kind):
    (tmp_path / 'a.pth').write_bytes(WHOLE)
    assert damage(tmp_path / 'a.pth') is None
    (tmp_path / 'a.pth').write_bytes(DAMAGED[kind])
    assert damage(tmp_path / 'a.pth')
    assert 'cannot be read' in damage(tmp_path / 'gone.pth')


def test_no_flipped_bit_changes_what_is_read_from_a_whole_file(tmp_path):
    """torch.load looks at no checksum: a part of such files loads as other weights."""
    rng, path, found, unnoticed_by_torch = random.Random(0), tmp_path / 'a.pth', 0, 0
    for position in rng.sample(range(8 * len(WHOLE)), 600) + list(
        range(8 * (WHOLE.index(b'PK\1\2') + 20), 8 * len(WHOLE), 11)
    ):
        flipped = bytearray(WHOLE)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            loaded = torch.load(path, weights_only=True)
            same = loaded['meta'] == CONTENT['meta']
            same &= all(
                torch.equal(tensor, loaded['state_dict'][name]) for name, tensor in CONTENT['state_dict'].items()
            )
            unnoticed_by_torch += not same
        except Exception:
            same = False
        if damage(path):
            found += 1
        else:
            assert same, position
    assert found > 300 and unnoticed_by_torch > 20


def test_a_file_that_would_run_code_is_no_reason_to_take_another_one(tmp_path):
    for epoch, content in ((1, {}), (2, dict(run=os.system))):
        torch.save(content, tmp_path / f'epoch_{epoch}.pth')
    assert find_checkpoint(tmp_path) == (str(tmp_path / 'epoch_2.pth'), [])
    with pytest.raises(CheckpointError, match='epoch_2.pth is refused: restoring it would run code'):
        load_local(str(tmp_path / 'epoch_2.pth'))


def test_tensors_of_a_gpu_are_read_where_there_is_none(tmp_path, monkeypatch):
    """Each file that a user names; one on the GPU that wrote it would be full of it, or is not here."""
    seen, load = [], torch.load
    monkeypatch.setattr(
        torch, 'load', lambda *args, **kwargs: (seen.append(kwargs['map_location']), load(*args, **kwargs))[1]
    )
    torch.save(dict(x=torch.ones(1)), tmp_path / 'detector.pth')
    assert load_local(str(tmp_path / 'detector.pth'))['x'] == 1 and seen == ['cpu']


@pytest.fixture
def run(tmp_path):
    """A folder with three checkpoints; the note names the newest."""
    for name in ('epoch_1.pth', 'epoch_2.pth', 'epoch_2_iter_30.pth'):
        (tmp_path / name).write_bytes(WHOLE)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2_iter_30.pth'))
    return tmp_path


@pytest.mark.parametrize('kind', DAMAGED)
def test_the_newest_whole_one_is_taken_with_a_warning(run, kind):
    (run / 'epoch_2_iter_30.pth').write_bytes(DAMAGED[kind])
    (run / 'epoch_2.pth').write_bytes(DAMAGED['half'])
    cfg = Config(dict(work_dir=str(run)))
    (level, first), (_, second), (last, taken), (_, said) = apis.use_resume(cfg, 'auto')
    assert level == last == logging.WARNING
    assert (
        str(run / 'epoch_2_iter_30.pth') in first
        and 'is damaged: it is' in first
        and str(run / 'epoch_2.pth') in second
    )
    assert taken.endswith(f'instead: {run / "epoch_1.pth"}') and said.endswith(f'continuing from {run / "epoch_1.pth"}')
    assert cfg.load_from == str(run / 'epoch_1.pth') and cfg.resume


@pytest.mark.parametrize(
    'note, says',
    [
        (b'', 'last_checkpoint is empty'),
        (b'/gone/epoch_7.pth', "'/gone/epoch_7.pth', which is no file"),
        (b'\0' * 20, 'which is no file'),
        (b'\xff\xfe' * 3000, 'which is no file'),
    ],
)
def test_a_damaged_note_is_told(run, note, says):
    (run / 'last_checkpoint').write_bytes(note)
    path, warnings = find_checkpoint(run)
    assert path == str(run / 'epoch_2_iter_30.pth') and len(warnings) == 2
    assert says in warnings[0] and path in warnings[1]


def test_checkpoints_kept_elsewhere(run, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work')
    (work_dir / 'last_checkpoint').write_text(str(run / 'epoch_3.pth'))
    assert find_checkpoint(work_dir)[0] == str(run / 'epoch_2_iter_30.pth')
    (work_dir / 'last_checkpoint').write_text(str(run / 'epoch_2.pth'))
    assert find_checkpoint(work_dir) == (str(run / 'epoch_2.pth'), [])
    (run / 'epoch_2.pth').write_bytes(b'')
    assert find_checkpoint(work_dir)[0] == str(run / 'epoch_2_iter_30.pth')


def test_nothing_whole_ends_in_one_sentence(run):
    for path in run.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(
        CheckpointError, match=r'no whole checkpoint in .*iter_30.pth is damaged.*epoch_1.pth is damaged.*--resume FILE'
    ):
        apis.use_resume(Config(dict(work_dir=str(run))), 'auto')
    with pytest.raises(
        ConfigError, match=r'epoch_1.pth. is damaged: it is empty \(0 bytes\); name another one, or say --resume alone'
    ):
        apis.use_resume(Config(dict(work_dir=str(run))), str(run / 'epoch_1.pth'))
    for path in run.glob('*.pth'):
        path.unlink()
    with pytest.raises(CheckpointError, match='which is no file'):
        find_checkpoint(run)
    (run / 'last_checkpoint').unlink()
    assert find_checkpoint(run) == (None, [])


def names(folder):
    return sorted(p.name for p in folder.glob('epoch*'))


def test_what_reads_back_otherwise_replaces_nothing(tmp_path, monkeypatch):
    """A device that says that it wrote, and did not."""

    def fsync(handle, real=os.fsync):
        real(handle)
        if os.path.isfile(f'/proc/self/fd/{handle}') and (tmp_path / 'epoch_2.pth').exists():
            os.pwrite(handle, b'\xaa', 1000)

    with monkeypatch.context() as patched:
        patched.setattr(safe.os, 'fsync', fsync)
        with pytest.raises(
            FileWriteError, match='read back differs from what was written.*last good checkpoint: .*epoch_2.pth'
        ):
            toy_runner(tmp_path).train()
    assert names(tmp_path) == ['epoch_2.pth'] and damage(tmp_path / 'epoch_2.pth') is None
    runner = toy_runner(tmp_path, load_from=apis.latest_checkpoint(str(tmp_path)), resume=True)
    runner.train()
    assert runner.epoch == 4 and names(tmp_path) == ['epoch_4.pth']


def test_other_backends_are_read_back_too(tmp_path, monkeypatch):
    def put(self, obj, filepath, real=LocalBackend.put):
        real(self, obj[:-100] if 'epoch_3' in str(filepath) else obj, filepath)

    monkeypatch.setattr(LocalBackend, 'put', put)
    hook = dict(type=SafeCheckpointHook, max_keep_ckpts=1, interval=1, backend_args=dict(backend='local'))
    with pytest.raises(
        FileWriteError, match='epoch_3.pth was read back, and it is truncated.*last good checkpoint: .*epoch_2.pth'
    ):
        toy_runner(tmp_path, default_hooks=dict(checkpoint=hook)).train()
    assert names(tmp_path) == ['epoch_2.pth', 'epoch_3.pth']
    path, warnings = find_checkpoint(tmp_path)
    assert path == str(tmp_path / 'epoch_2.pth') and 'epoch_3.pth is damaged' in warnings[0]


@pytest.mark.parametrize('count, epochs', [(2, [4, 8]), (4, [2, 4, 6, 8]), (99, range(1, 9))])
def test_a_number_of_checkpoints_in_place_of_a_distance(tmp_path, count, epochs):
    hook = dict(type=SafeCheckpointHook, interval=None, count=count)
    toy_runner(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=8), default_hooks=dict(checkpoint=hook)).train()
    assert names(tmp_path) == [f'epoch_{n}.pth' for n in epochs]


@pytest.mark.parametrize('recipe', ['odis_small', 'gtsa_small', 'alfm_small', 'ibot_small'])
def test_small_recipes_count_checkpoints_by_the_run(recipe):
    """An epoch of 200 images is six steps."""
    hook = load_config(recipe).default_hooks.checkpoint
    assert hook.interval is None and hook.get('count', 4) == 4


def test_what_killed_processes_left_goes(tmp_path):
    for name in ('epoch_9.pth.part', '.epoch_9_backbone.pth.a_b1.tmp', '.epoch_9_backbone.md.abc.tmp', '.mine.tmp'):
        (tmp_path / name).touch()
    toy_runner(tmp_path).train()
    assert names(tmp_path) == ['epoch_4.pth'] and [p.name for p in tmp_path.glob('.*')] == ['.mine.tmp']


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
