"""A look at the views before a run, and pictures of it."""

from pathlib import Path
from typing import Iterator, List

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...datasets.image_io import PostponedJPEG
from ...datasets.survey import spread, visible_share
from ...datasets.transforms import PackViews, SampleViews
from ...utils.distributed import unwrap
from ...utils.errors import BadImageError, ConfigError
from ...utils.files import read_records

REMEDY = (
    'lower min_cover of SampleViews, or draw smaller crops (scale of the views) so that an object fills more of them '
    '(`odis-mm pretrain --data DIR` chooses both from the data)'
)


@HOOKS.register_module()
class ViewInspectionHook(Hook):
    """Measures, before the first iteration, how many images show their object in all global views, and draws views of
    some.

    The object loss uses only such images. A share below ``warn_below`` is warned of; 0 ends the run, as it would learn
    nothing. The pictures ``views_N.png`` go to the work dir and to the visualizer (TensorBoard, W&B); after training
    follow ``curves.png`` (losses, learning rate, health figures) and, of backbones with an [OBJ] token,
    ``attention.png``.

    Args:
        pictures: How many images' views to draw; 0: none, and no picture after training either.
        warn_below: Share of the images.
        limit: At most so many images are looked at, evenly spread; only coordinates are drawn, no pixels.
    """

    priority = 'LOWEST'  # the curves are drawn from what the loggers have written

    def __init__(self, pictures: int = 3, warn_below: float = 0.5, limit: int = 1000):
        self.pictures, self.warn_below, self.limit = pictures, warn_below, limit

    def before_train(self, runner) -> None:
        dataset = runner.train_dataloader.dataset
        for part in _parts(dataset):
            self._look(runner, part)
        if self.pictures and is_main_process() and runner.iter == 0:
            self._samples = [sample for part in _parts(dataset) for sample in samples_of(part, self.pictures)][
                : self.pictures
            ]
            from ...visualization import draw_views

            for i, sample in enumerate(self._samples):
                image = draw_views(sample, str(Path(runner.work_dir, f'views_{i + 1}.png')))
                runner.visualizer.add_image(f'views_{i + 1}', image, step=0)

    def _look(self, runner, dataset) -> None:
        samplers = [step for step in dataset.pipeline.transforms if isinstance(step, SampleViews)]
        if not samplers or samplers[0].target_rule == 'whole_image':
            return  # the method uses no objects
        share = visible_share(dataset, samplers[0], self.limit)
        line = (
            f'{share:.0%} of the images show their object in all global views; the others do not count in the '
            'object loss'
        )
        if share == 0:
            raise ConfigError(
                f'no image shows its object in all global views, so that nothing would be learned: {REMEDY}.'
            )
        if share < self.warn_below:
            runner.logger.warning(f'only {line}: {REMEDY}.')
        else:
            runner.logger.info(line)

    def after_train(self, runner) -> None:
        if not self.pictures or not is_main_process():
            return
        from ...visualization import draw_attention, draw_curves

        folder = Path(runner.work_dir)
        records = list(_records(folder))
        if len(records) > 1:
            name = folder.name
            runner.visualizer.add_image(
                'curves', draw_curves(records, str(folder / 'curves.png'), name), step=runner.iter
            )
        model = unwrap(runner.model)
        teacher = model.branch('teacher') if hasattr(model, 'branch') else None
        if not hasattr(teacher, 'object_attention_map') or any(hasattr(p, 'full_tensor') for p in teacher.parameters()):
            return
        samples = [s for s in getattr(self, '_samples', []) if 'patch_masks' in s]
        if not samples:
            return
        views = [s['pixels'][0] for s in samples]
        masks = [s['patch_masks'][0] for s in samples]
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        data = model.data_preprocessor(dict(inputs=pixels))['inputs']
        masked = torch.from_numpy(np.stack([mask.reshape(-1) for mask in masks])).to(data.device)
        attention = teacher.object_attention_map(data, masked if getattr(model, 'masked_attention', False) else None)
        image = draw_attention(views, attention.float().cpu().numpy(), masks, str(folder / 'attention.png'))
        runner.visualizer.add_image('attention', image, step=runner.iter)


def _parts(dataset) -> List:
    """The data sets inside wrappers such as ``ConcatDataset``."""
    inner = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else None)
    if inner is None:
        return [dataset] if hasattr(getattr(dataset, 'pipeline', None), 'transforms') else []
    return [part for one in inner for part in _parts(one)]


def samples_of(dataset, count: int, epoch: int = 0) -> Iterator[dict]:
    """Return what the pipeline of an ``ObjectDataset`` makes of ``count`` images, evenly spread, before it is packed;
    bad images are left out."""
    for index in spread(len(dataset), count).tolist():
        sample = {
            **dataset.get_data_info(index),
            'epoch': epoch,
            'rng': np.random.default_rng((dataset.seed, epoch, index)),
        }
        try:
            for step in dataset.pipeline.transforms:
                if isinstance(step, PackViews):
                    break
                sample = step(sample)
        except BadImageError:  # training names and replaces it
            continue
        if 'pixels' in sample:
            if isinstance(sample['img'], PostponedJPEG):  # who looks at it wants all of it
                sample['img'] = sample['img'].decode()
            yield sample


def _records(folder: Path) -> Iterator[dict]:
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        for record in read_records(file):
            yield {'step': record.get('step', record.get('iter', 0)), **record}
