"""A peer's step and ours in turn, with a trainer that stands in for the peer's."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.config import Config

from helpers import ODIS_CONFIG
from odis_mm.analysis import peer
from odis_mm.utils.errors import ConfigError

CONFIG = Config(
    dict(
        model=copy.deepcopy(ODIS_CONFIG),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3), constructor='SelfSupOptimWrapperConstructor'),
    )
)


def test_steps_are_taken_in_turn_on_the_peer_s_views():
    callback = peer.beside_class(object)(CONFIG, 2, 0.3, 'cpu', False, 3)
    trainer, theirs = SimpleNamespace(should_stop=False), torch.nn.Linear(4, 24)
    seen = []
    for index in range(3):
        views = [torch.randn(2, 3, 28, 28) for _ in range(2)] + [torch.randn(2, 3, 14, 14) for _ in range(3)]
        callback.on_train_batch_start(trainer, theirs, dict(views=views), index)
        callback.on_train_batch_end(trainer, theirs, None, dict(views=views), index)
        seen.append(trainer.should_stop)
    assert seen == [False, False, True] and len(callback.peer) == len(callback.ours) == 3
    model = callback.step.model
    assert len(model.head.token_center.value) == 24 and not model.masked_attention
    rates = {part.drop_prob for part in model.backbone.modules() if isinstance(part, DropPath)}
    assert rates == {0.3} and model.backbone.patch_embed.projection.stride == (14, 14)
    assert CONFIG.model.backbone.patch_size == 8  # the user's is left alone


def test_batches_hold_the_views_in_the_order_of_ours():
    views = [torch.full((2, 3, size, size), float(i)) for i, size in enumerate((32, 32, 16, 16, 16))]
    batch = peer.our_batch(views, 16)
    assert [part.shape[0] for part in batch['inputs']] == [4, 6]
    assert batch['inputs'][1][:, 0, 0, 0].tolist() == [2.0, 2.0, 3.0, 3.0, 4.0, 4.0]  # view by view
    samples = batch['data_samples']
    assert samples['mim_mask'].shape == (4, 4) and len(samples['mim_index']) == int(samples['mim_mask'].sum())


def test_a_peer_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'lightly_train', None)
    with pytest.raises(ConfigError, match='pip install lightly-train'):
        peer.lightly_benchmark(CONFIG, 'dinov2/vits14-notpretrained', 2)
