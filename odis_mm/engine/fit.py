"""Whether a file's tensors are those of a model, told tensor by tensor before anything is loaded."""

import re
from fnmatch import fnmatchcase
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Tuple

from torch import Tensor, nn

from ..transfer.mmengine_loading import load_local
from ..utils.distributed import unwrap
from ..utils.errors import CheckpointError

# models resample these to their own size as they load them, with a line in the log
RESAMPLED = ('pos_embed', 'relative_position_bias_table', 'rel_pos_h', 'rel_pos_w')
HEADS = ('rpn_head.', 'roi_head.', 'bbox_head.', 'proposal_generator.', 'roi_heads.', 'rpn.')  # of detectors
SHOWN = 4


def kind_of(content: Any) -> str:
    """Return in words what a loaded file is, from its keys: 'an exported backbone', 'a training checkpoint of ODIS',
    ..."""
    state = state_of(content)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    if not state:
        return 'a file without tensors by name'
    trained = isinstance(content, Mapping) and 'optimizer' in content
    if any(name.startswith('teacher.') for name in state):
        return 'a pretraining checkpoint' if trained else 'the weights of a pretraining model'
    if all(name.startswith('backbone.') for name in state):
        return f'an exported backbone of {meta["method"]}' if 'method' in meta else 'an exported backbone'
    if holds_detector(state):
        return "a detector's checkpoint" if trained else "a detector's weights"
    if any(name.startswith('backbone.') for name in state):
        return 'a training checkpoint of another model' if trained else 'the weights of a model'
    return 'a file of another library'


def holds_detector(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are those of a detector: of mmdet, detectron2 or torchvision."""
    return any(name.startswith(HEADS) for name in names)


def state_of(content: Any) -> Dict[str, Tensor]:
    """Return the tensors that mmengine would load from a file's content, under the names it would use."""
    if not isinstance(content, Mapping):
        return {}
    state = content['state_dict'] if isinstance(content.get('state_dict'), Mapping) else content
    return {re.sub(r'^module\.', '', str(name)): value for name, value in state.items() if isinstance(value, Tensor)}


def check_fit(model: nn.Module, content: Any, name: str, remedy: str, allow: Sequence[str] = ()) -> List[str]:
    """Refuse a file that would leave tensors of the model as they are; return what is left unloaded all the same, in
    words.

    mmengine loads what fits and says the rest in one warning, after which a detector with random heads is evaluated.

    Args:
        model: Wrapped or not.
        content: Of the file.
        name: Of the file, for the message.
        remedy: What to do instead, the end of the sentence.
        allow: Shell patterns of tensors that may be missing or of another shape.

    Raises:
        CheckpointError: tensors are missing or misshapen; says what the file is and names them.
    """
    own, state = unwrap(model).state_dict(), state_of(content)

    def allowed(key: str) -> bool:
        return any(fnmatchcase(key, pattern) for pattern in allow)

    missing = [key for key in own if key not in state and not key.endswith('num_batches_tracked')]
    misshapen = [
        key
        for key, value in own.items()
        if key in state and state[key].shape != value.shape and key.rpartition('.')[2] not in RESAMPLED
    ]
    wrong = [key for key in missing + misshapen if not allowed(key)]
    if wrong:
        parts = []
        lacking = [key for key in missing if not allowed(key)]
        if lacking:
            parts.append(f'{len(lacking)} of its {len(own)} tensors are not in the file ({_some(lacking)})')
        shapes = [
            f'{key} is {list(state[key].shape)} in the file, {list(own[key].shape)} in the model'
            for key in misshapen
            if not allowed(key)
        ]
        if shapes:
            parts.append(f'{len(shapes)} have another shape ({_some(shapes, "; ")})')
        raise CheckpointError(
            f'{name} is {kind_of(content)} and does not fit this {type(unwrap(model)).__name__}: '
            f'{", and ".join(parts)}; {remedy}'
        )
    left = [f'{key}: not in the file' for key in missing] + [f'{key}: of another shape' for key in misshapen]
    return left + [f'{key}: in the file, not in the model' for key in state if key not in own]


def load_fitting(model: nn.Module, content: Any, name: str, remedy: str) -> List[str]:
    """Load the tensors of a file after :func:`check_fit`, whose lines are returned."""
    left = check_fit(model, content, name, remedy)
    model.load_state_dict(state_of(content), strict=False)  # what does not fit was refused, or is in these lines
    return left


def check_pretrained(model: nn.Module, config: Mapping) -> None:
    """Refuse mmengine's ``init_cfg=dict(type='Pretrained', checkpoint=FILE)`` where the file lacks tensors of the
    module.

    Such tensors stay random, and one line among mmengine's keys is all that says so. What mmengine fetches itself
    (``torchvision://``, URLs) is left to it.

    Args:
        model: As built, wrapped or not.
        config: Of the model.

    Raises:
        CheckpointError: see :func:`check_fit`.
    """
    for path, init in _inits(config):
        checkpoint = init.get('checkpoint')
        if (
            str(init.get('type')).rpartition('.')[2] != 'Pretrained'
            or not isinstance(checkpoint, str)
            or '://' in checkpoint
        ):
            continue
        content, prefix = load_local(checkpoint, 'cpu'), init.get('prefix') or ''
        prefix += '.' if prefix and not prefix.endswith('.') else ''
        state = {key[len(prefix) :]: value for key, value in state_of(content).items() if key.startswith(prefix)}
        where = f'model.{path}.init_cfg' if path else 'model.init_cfg'
        check_fit(
            unwrap(model).get_submodule(path),
            dict(content, state_dict=state) if isinstance(content, Mapping) else state,
            f'{where}: {checkpoint}',
            f"{where}.type='VerifiedPretrained' reads backbones of this and other libraries by their names.",
        )


def _inits(node: Any, path: str = '') -> Iterator[Tuple[str, Mapping]]:
    if not isinstance(node, Mapping):
        return
    if isinstance(node.get('init_cfg'), Mapping):
        yield path, node['init_cfg']
    for key, value in node.items():
        if key != 'init_cfg':
            yield from _inits(value, f'{path}.{key}' if path else key)


def _some(names: Iterable[str], between: str = ', ') -> str:
    names = list(names)
    return between.join(names[:SHOWN]) + (f'{between}...' if len(names) > SHOWN else '')
