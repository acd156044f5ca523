"""ResNets: torchvision, timm, mmpretrain and mmdet share their names, so that a transfer is a check."""

import re
from collections import Counter
from typing import Optional, Tuple

import torch
from mmpretrain.registry import MODELS
from torch import nn

from ..utils.errors import CheckpointError
from ..utils.scopes import scope_of
from .build import initialise
from .layouts import PREFIXES, some
from .loading import load_backbone
from .shape import State

_STEM = 'layer1.0.conv1.weight'
_DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
_OURS = re.compile(
    r'(conv1|bn1|layer[1-4]\.\d+\.((conv|bn)[123]|downsample\.[01]))'
    r'\.(weight|bias|running_mean|running_var|num_batches_tracked)'
)


def find_resnet(state: State) -> Optional[str]:
    """Return the prefix below which a ResNet stands in a file, or None."""
    return next((prefix for prefix in PREFIXES if prefix + _STEM in state and f'{prefix}conv1.weight' in state), None)


def read_resnet(state: State, name: str) -> Tuple[State, str, State]:
    """Return the tensors of a ResNet, the prefix they stood under, and what else stood there (the classifier ``fc``).

    Raises:
        CheckpointError: no ResNet, or a tensor that no plain one has.
    """
    prefix = find_resnet(state)
    if prefix is None:
        raise CheckpointError(f'{name} holds no ResNet: its tensors are named {some(list(state))}.')
    found = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    body = {key: value for key, value in found.items() if _OURS.fullmatch(key)}
    rest = {key: value for key, value in found.items() if key not in body}
    unknown = [key for key in rest if not key.startswith(('fc.', 'head.'))]
    if unknown:
        raise CheckpointError(f'{name} holds {len(unknown)} tensor(s) that no plain ResNet has ({some(unknown)}).')
    return body, prefix, rest


@scope_of('mmpretrain')
def build_resnet(state: State, name: str = 'state dict', random: bool = False) -> nn.Module:
    """Return ``mmpretrain.ResNet`` with these tensors, strictly loaded, in evaluation mode; its output is the last map.

    With ``random`` it is of their shape only, initialised from seed 0.

    Raises:
        CheckpointError: blocks of no known depth, or a tensor missing.
    """
    stages = Counter(match[1] for key in state if (match := re.match(r'layer([1-4])\.\d+\.conv1\.weight', key)))
    blocks = (stages['1'], stages['2'], stages['3'], stages['4'])
    depth = _DEPTHS.get(('layer1.0.conv3.weight' in state, blocks))
    if depth is None:
        raise CheckpointError(
            f'{name} has {blocks} blocks in its four stages, which is no '
            f'ResNet-{", -".join(map(str, _DEPTHS.values()))}.'
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs' generators, too
        model = MODELS.build(dict(type='mmpretrain.ResNet', depth=depth, in_channels=state['conv1.weight'].shape[1]))
        if random:
            initialise(model)
    if not random:
        load_backbone(model, state, logger='silent')
    model.eval()  # mmpretrain's returns nothing
    return model
