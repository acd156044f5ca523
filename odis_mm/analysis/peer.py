"""A step of another library's training beside ours: in turn, in one process, on the very same views.

lightly-train (AGPL) is neither needed nor part of this project: where it is installed, its public ``pretrain`` runs its
own training, and a callback of Lightning times each of its steps and then ours.
"""

import copy
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence
from unittest import mock

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves  # torch gives it no public name

from ..datasets.transforms.mim import draw_blocks
from ..datasets.transforms.packing import mask_positions
from ..utils.errors import ConfigError
from .benchmark import build_model, ratio
from .timing import Step


def lightly_benchmark(
    cfg: Config,
    peer_model: str,
    batch: int,
    repeats: int = 5,
    drop_path: float = 0.3,
    device: str = 'cpu',
    bf16: bool = False,
) -> Dict[str, Any]:
    """Time lightly-train's ``dinov2`` beside the model of a config, which takes the peer's views, patch size, width of
    the prototypes, LayerScale and, in all blocks, drop path.

    What is timed is forward, backward, optimizer and teacher; loading and augmenting are outside. If the peer updates
    its teacher outside of what Lightning calls a step, that is not counted; ours is.

    Args:
        cfg: Of an ODIS without parts that the peer lacks; its masks of objects are left out (iBOT).
        peer_model: As ``lightly_train.pretrain`` takes it, such as 'dinov2/vits14-notpretrained'.
        batch: Images a step.
        repeats: Counted steps of each; two before them are not.
        drop_path: Rate of stochastic depth in every block of both students.
        device: 'cpu' (CPU seconds are compared) or 'cuda' (seconds).
        bf16: Autocast.

    Returns:
        ``peer`` and ``ours``: seconds of each repeat; ``ratio``: median of peer / ours within a repeat; ``views``.

    Raises:
        ConfigError: lightly-train is not installed, or did not make enough steps.
    """
    try:
        import lightly_train
        import pytorch_lightning
    except ImportError as error:
        raise ConfigError(f'the peer is not installed ({error}): pip install lightly-train.') from None
    beside = beside_class(pytorch_lightning.Callback)(cfg, batch, drop_path, device, bf16, repeats + 2)
    with tempfile.TemporaryDirectory() as folder, _added(pytorch_lightning.Trainer, beside):
        _write_images(Path(folder, 'images'), batch * 2)
        lightly_train.pretrain(
            out=str(Path(folder, 'out')),
            data=str(Path(folder, 'images')),
            model=peer_model,
            method='dinov2',
            model_args=dict(drop_path_rate=drop_path),
            batch_size=batch,
            epochs=repeats + 3,
            num_workers=0,
            accelerator='gpu' if device == 'cuda' else 'cpu',
            devices=1,
            precision='bf16-mixed' if bf16 else '32-true',
        )
    if len(beside.ours) < repeats + 2:
        raise ConfigError(f'the peer made {len(beside.ours)} steps in place of {repeats + 2}.')
    peer, ours = beside.peer[2:], beside.ours[2:]
    return dict(
        peer=peer,
        ours=ours,
        ratio=ratio(peer, ours),
        batch=batch,
        drop_path=drop_path,
        views=[list(shape) for shape in beside.shapes],
        prototypes=beside.prototypes,
        version=lightly_train.__version__,
    )


@contextmanager
def _added(trainer: type, callback: Any) -> Iterator[None]:
    """Within, every Lightning trainer has one more callback."""
    fit = trainer.fit

    def with_callback(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.callbacks.append(callback)
        return fit(self, *args, **kwargs)

    with mock.patch.object(trainer, 'fit', with_callback):
        yield


def beside_class(base: type) -> type:
    """Return a callback that times each step of the peer, then ours; ``base``: the class of the callbacks."""

    class Beside(base):
        """After each step of the peer, a step of ours on its views."""

        def __init__(self, cfg: Config, batch: int, drop_path: float, device: str, bf16: bool, steps: int):
            self.cfg, self.batch, self.drop_path = cfg, batch, drop_path
            self.device, self.bf16, self.steps = torch.device(device), bf16, steps
            self.step: Optional[Step] = None
            self.peer: List[float] = []
            self.ours: List[float] = []

        def _now(self) -> float:
            if self.device.type == 'cpu':
                return time.process_time()
            torch.cuda.synchronize()
            return time.perf_counter()

        def on_train_batch_start(self, trainer: Any, module: nn.Module, batch: Any, index: int) -> None:
            self.start = self._now()

        def on_train_batch_end(self, trainer: Any, module: nn.Module, outputs: Any, batch: Any, index: int) -> None:
            self.peer.append(self._now() - self.start)
            views = [x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.ndim == 4]
            self.shapes = [tuple(view.shape) for view in views]
            if self.step is None:
                # no other matrix has so many rows
                self.prototypes = max(p.shape[0] for p in module.parameters() if p.ndim == 2)
                self.step = our_step(self.cfg, self.shapes, self.prototypes, self.drop_path, self.device, self.bf16)
            data = our_batch(views, self.step.model.backbone.patch_embed.projection.stride[0])
            start = self._now()
            self.step(data)
            self.ours.append(self._now() - start)
            if len(self.ours) == self.steps:
                trainer.should_stop = True

    return Beside


def our_step(
    cfg: Config, shapes: Sequence[Sequence[int]], prototypes: int, drop_path: float, device: torch.device, bf16: bool
) -> Step:
    """A step of the config's model, without object masks, for views of these shapes [B, 3, h, w], globals first."""
    init_default_scope('mmpretrain')
    cfg = copy.deepcopy(cfg)
    side = shapes[0][-1]
    patch = 14 if side % 14 == 0 and shapes[-1][-1] % 14 == 0 else 16
    cfg.model.backbone.update(
        img_size=side,
        patch_size=patch,
        layer_scale_init_value=1e-5,
        drop_path_rate=drop_path,
        layer_cfgs=dict(drop_path_rate=drop_path),
        drop_path_subset=device.type != 'cpu',
    )
    cfg.model.update(masked_attention=False)
    cfg.model.neck.num_prototypes = cfg.model.head.num_prototypes = prototypes
    model = build_model(cfg, device, False)
    # of its own data it reads the device alone: each step is given the views
    return Step(model, cfg, dict(inputs=[torch.zeros(0, device=device)]), bf16)


def our_batch(views: Sequence[Tensor], patch: int) -> dict:
    """Views [B, 3, h, w], globals first, as a batch with masks of patches drawn anew."""
    sizes = [view.shape[-2:] for view in views]
    images, device = len(views[0]), views[0].device
    inputs = [torch.cat([view for view in views if view.shape[-2:] == size]) for size in dict.fromkeys(sizes)]
    rng, (rows, columns) = np.random.default_rng(), (side // patch for side in sizes[0])
    masks = []
    for _ in range(len(inputs[0])):
        ratio = rng.uniform(0.1, 0.5) * (rng.random() < 0.5)
        masks.append(draw_blocks(rng, rows, columns, ratio, 0.3, 10).reshape(-1))
    mask = torch.from_numpy(np.stack(masks))
    samples = dict(
        mim_mask=mask, **mask_positions(mask), object_visible=torch.ones(images, len(views), dtype=torch.bool)
    )
    return dict(inputs=inputs, data_samples={name: value.to(device) for name, value in samples.items()})


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{i}.jpg'), cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC))
