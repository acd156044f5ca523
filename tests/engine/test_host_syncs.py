"""No step waits for the device but to judge the loss."""

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from helpers import make_batch, make_odis
from odis_mm.engine.deferred import DeferredHistory, defer_scalar

SYNCS = ('item', '__float__', '__bool__', '__int__', 'tolist', 'cpu', 'numpy', 'nonzero')


def count_syncs(monkeypatch, seen):
    for name in SYNCS:
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, name=name, original=original, **k: (seen.append(name), original(self, *a, **k))[1],
        )


class Arrived(torch.nn.Module):
    """A preprocessor of batches that are on the device already: what it does before that is done in host memory."""

    def forward(self, data, training):
        return data


class Count(Hook):
    priority = 'VERY_LOW'

    def __init__(self, seen):
        self.seen, self.counts = seen, []

    def after_train_iter(self, *args, **kwargs):
        self.counts.append(list(self.seen))
        self.seen.clear()


@pytest.mark.parametrize(
    'info, judge, expected',
    [('DeferredInfoHook', [], 0), ('DeferredInfoHook', ['NonFiniteLossHook'], 1), ('RuntimeInfoHook', [], None)],
)
def test_no_step_waits_for_the_device_but_to_judge_the_loss(tmp_path, monkeypatch, info, judge, expected):
    init_default_scope('mmpretrain')
    model, seen = make_odis(), []
    batch = model.data_preprocessor(make_batch(batch=2), True)
    model.data_preprocessor = Arrived()
    count = Count(seen)
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=torch.utils.data.DataLoader([batch] * 4, batch_size=1, collate_fn=lambda items: items[0]),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(
            type='SafeOptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, fused=True),
            clip_grad=dict(max_norm=1.0),
            constructor='SelfSupOptimWrapperConstructor',
        ),
        param_scheduler=dict(type='LinearLR', by_epoch=False, end=4),
        default_hooks=dict(runtime_info=dict(type=info), logger=dict(type='LoggerHook', interval=4), checkpoint=None),
        custom_hooks=[
            dict(type='ProgressHook'),
            *(dict(type=name) for name in judge),
            dict(type='SelfSupScheduleHook'),
            count,
        ],
        experiment_name=f'{info}{len(judge)}',
        default_scope='mmpretrain',
    )
    count_syncs(monkeypatch, seen)
    runner.train()
    for found in count.counts[1:3]:  # the first makes the histories, the last is logged
        assert len(found) == expected if expected is not None else len(found) > 3, found
    assert count.counts[3]
    monkeypatch.undo()
    history = runner.message_hub.get_scalar('train/grad_norm')
    assert len(history.data[0]) == 4 and np.isfinite(history.data[0]).all()


def test_deferred_values_are_those_of_the_plain_hook(tmp_path):
    hub = MessageHub.get_instance('deferred')
    plain = HistoryBuffer()
    for i in range(7):
        value = torch.tensor(i * 0.37, requires_grad=True)
        defer_scalar(hub, 'train/loss', value)
        plain.update(value.item())
    history = hub.get_scalar('train/loss')
    assert isinstance(history, DeferredHistory) and history.pending
    assert history.mean(3) == plain.mean(3) and history.current() == plain.current() and history.max() == plain.max()
    defer_scalar(hub, 'train/loss', torch.tensor(9.0))
    saved = hub.state_dict()['log_scalars']['train/loss']
    assert type(saved) is HistoryBuffer and saved.current() == 9.0 and len(saved.data[0]) == len(saved.data[1]) == 8
    torch.save(saved, tmp_path / 'history.pth')
    short = DeferredHistory([1.0], [1], 3)
    for i in range(5):
        short.append(torch.tensor(float(i)))
    assert short.data[0].tolist() == [2.0, 3.0, 4.0] and short.data[1].tolist() == [1, 1, 1]
