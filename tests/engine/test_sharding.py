"""What sharded training does that takes no second rank to see."""

import mmengine._strategy.single_device as strategies
import mmengine.runner.checkpoint as loading
import torch
from mmengine.logging import MMLogger

from odis_mm.engine.sharding import FullyShardedStrategy


def test_a_whole_checkpoint_is_not_loaded_onto_each_gpu(monkeypatch):
    """It holds the parts of all ranks: a model that is sharded because it needs several GPUs could never resume."""
    seen = []

    def load(filename, map_location):
        seen.append(map_location)
        return dict(state_dict=torch.nn.Linear(2, 2).state_dict(), meta={})

    monkeypatch.setattr(loading, '_load_checkpoint', load)
    monkeypatch.setattr(strategies, 'get_device', lambda: 'cuda')
    strategy = FullyShardedStrategy.__new__(FullyShardedStrategy)
    strategy.model, strategy.logger = torch.nn.Linear(2, 2), MMLogger.get_current_instance()
    for place in ('default', 'cpu'):  # of --resume and of load_from
        strategy.load_checkpoint('epoch_1.pth', map_location=place)
    assert seen == ['cpu', 'cpu']
