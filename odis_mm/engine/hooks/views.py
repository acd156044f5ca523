"""A look at the views before a run, and pictures of it."""

from pathlib import Path
from typing import Iterator, List, Sequence, Tuple

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch.nn.functional import normalize

from ...datasets.image_io import PostponedJPEG
from ...datasets.survey import FEW, spread, visibility
from ...datasets.transforms import PackViews, SampleViews
from ...evaluation.frozen import evaluating
from ...utils.distributed import unwrap
from ...utils.errors import BadImageError, ConfigError
from ...utils.files import read_records
from .health import HealthHook

REMEDY = (
    'lower min_cover of SampleViews, or draw smaller crops (scale of the views) so that an object fills more of them '
    '(`odis-mm pretrain --data DIR` chooses both from the data)'
)
FEW_SHARE = 0.3  # of the images, from which on few visible patches are told of


@HOOKS.register_module()
class ViewInspectionHook(Hook):
    """Measures, before the first iteration, how many images show their object in all global views, and draws views of
    some; says how to read the loss where it may be below 0.

    The object loss uses only such images. A share below ``warn_below`` is warned of; 0 ends the run, as it would learn
    nothing. The pictures ``views_N.png`` go to the work dir and to the visualizer (TensorBoard, W&B); after training
    follow ``curves.png`` (losses, the method's figures, learning rate, health) and what the teacher makes of the same
    images: ``attention.png``, where its [OBJ] (or [CLS]) token looks, or, of methods whose losses do not read that
    token, ``similarity.png``: how much all patches are like the one in the middle, by the cosine of their features
    without the mean of the view's.

    Args:
        pictures: How many images' views to draw; 0: none, and no picture after training either.
        warn_below: Share of the images.
        limit: At most so many images are looked at, evenly spread; only coordinates are drawn, no pixels.
    """

    priority = 'LOWEST'  # the curves are drawn from what the loggers have written

    def __init__(self, pictures: int = 3, warn_below: float = 0.5, limit: int = 1000):
        self.pictures, self.warn_below, self.limit = pictures, warn_below, limit
        self.samples: List[dict] = []  # of which pictures were drawn before the run

    def before_train(self, runner) -> None:
        hint = getattr(unwrap(runner.model), 'loss_hint', '')
        if hint:
            runner.logger.info(hint)
        dataset = runner.train_dataloader.dataset
        for part in _parts(dataset):
            self.look(runner, part)
        if self.pictures and is_main_process() and runner.iter == 0:
            self.samples = [sample for part in _parts(dataset) for sample in samples_of(part, self.pictures)][
                : self.pictures
            ]
            from ...visualization import draw_views

            for i, sample in enumerate(self.samples):
                image = draw_views(sample, str(Path(runner.work_dir, f'views_{i + 1}.png')))
                runner.visualizer.add_image(f'views_{i + 1}', image, step=0)

    def look(self, runner, dataset) -> None:
        """Tell how many images of a data set show their object, and refuse a run where none does."""
        samplers = [step for step in dataset.pipeline.transforms if isinstance(step, SampleViews)]
        if not samplers or samplers[0].target_rule == 'whole_image':
            return  # the method uses no objects
        found, sampler = visibility(dataset, samplers[0], self.limit), samplers[0]
        share, (height, width) = found.share, sampler.groups[0]['size']
        total = height * width // sampler.patch_size**2
        line = (
            f'{share:.0%} of the images show their object in all global views, on {found.patches:.0f} of {total} '
            'patches in the median; the others do not count in the object loss'
        )
        if share == 0:
            raise ConfigError(
                f'no image shows its object in all global views, so that nothing would be learned: {REMEDY}.'
            )
        if share < self.warn_below:
            runner.logger.warning(f'only {line}: {REMEDY}.')
        else:
            runner.logger.info(line)
        if found.few >= FEW_SHARE:
            runner.logger.info(
                f'in {found.few:.0%} of these images the object covers at most {FEW} of the {total} patches of a '
                'global view; larger views have more patches and take longer (--size of odis-mm pretrain, or size of '
                f'the views, here {height} pixels)'
            )

    def after_train(self, runner) -> None:
        if not self.pictures or not is_main_process():
            return
        from ...visualization import draw_maps

        folder = Path(runner.work_dir)
        _draw_curves(runner)
        model, samples = unwrap(runner.model), self.samples
        if not samples or not hasattr(model, 'branch'):
            return
        if any(hasattr(p, 'full_tensor') for p in model.branch('teacher').parameters()):
            return  # sharded: all ranks would have to take part
        name = 'attention' if model.reads_object_token else 'similarity'
        maps = attention_maps(model, samples) if model.reads_object_token else _similarity(model, samples)
        views = [sample['pixels'][0] for sample in samples]
        image = draw_maps(views, out_png=str(folder / f'{name}.png'), **maps)
        runner.visualizer.add_image(name, image, step=runner.iter)


@HOOKS.register_module()
class CurvesHook(Hook):
    """Leaves ``curves.png`` in the work dir and the visualizer after a detector was trained: losses, learning rate, and
    COCO AP where it was measured three times or more. After a pretraining :class:`ViewInspectionHook` does."""

    priority = 'LOWEST'  # drawn from what the loggers have written

    def after_train(self, runner) -> None:
        if is_main_process():
            _draw_curves(runner)


def _draw_curves(runner) -> None:
    from ...visualization import draw_curves

    folder = Path(runner.work_dir)
    records = list(_records(folder))
    if len(records) > 1:
        health = next((hook for hook in runner.hooks if isinstance(hook, HealthHook)), None)
        curves = draw_curves(records, str(folder / 'curves.png'), folder.name, health and health.good_ranges())
        runner.visualizer.add_image('curves', curves, step=runner.iter)


def _inputs(model, samples: Sequence[dict]) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack([sample['pixels'][0] for sample in samples])).permute(0, 3, 1, 2)
    return model.data_preprocessor(dict(inputs=pixels))['inputs']


def attention_maps(model, samples: Sequence[dict]) -> dict:
    """Where the teacher's [OBJ], or [CLS], looks in the last block, for ``draw_maps``."""
    inputs, masks = _inputs(model, samples), None
    if model.masked_attention:
        masks = np.stack([sample['patch_masks'][0] for sample in samples])
    patches = None if masks is None else torch.from_numpy(masks).flatten(1).to(inputs.device)
    attention = model.branch('teacher').object_attention_map(inputs, patches).float().cpu().numpy()
    values = relative(attention, np.ones(attention.shape, bool) if masks is None else masks)
    seen = values[np.isfinite(values)]
    most = np.ceil(2 * np.percentile(seen, 99)) / 2 if len(seen) else 0.0  # few peaks must not darken the rest
    return dict(
        values=values,
        meaning=f'{"[CLS]" if masks is None else "[OBJ]"} attention',
        unit='x mean of all patches' if masks is None else "x mean of\nthe object's patches",
        limits=(0.0, max(float(most), 2.0)),
        masks=masks,
    )


def relative(attention: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return attention float [n, h, w] over its mean in the patches that may be seen, bool [n, h, w]: 1 where it looks
    everywhere alike; NaN in the other patches."""
    seen = np.where(masks, attention, np.nan)
    count = masks.sum((1, 2), keepdims=True)
    return seen * count / np.maximum(np.nansum(seen, (1, 2), keepdims=True), np.finfo(seen.dtype).tiny)


@torch.no_grad()
def _similarity(model, samples: Sequence[dict]) -> dict:
    """How much the teacher's patches are like the one in the middle, for ``draw_maps``."""
    with evaluating(model.branch('teacher')):  # its batch norms train, and synced ones would wait for the other ranks
        maps = model.extract_feat(_inputs(model, samples))
    middle = maps.shape[2] // 2, maps.shape[3] // 2
    values = similarity(maps, middle).cpu().numpy()
    return dict(values=values, meaning='like the green patch', unit='cosine', limits=(-1, 1), marked=middle)


def similarity(maps: torch.Tensor, cell: Tuple[int, int]) -> torch.Tensor:
    """Return the cosine of the features of all cells of maps [n, D, h, w] with those of one (row, column), the mean of
    each map taken off: float [n, h, w]."""
    maps = normalize(maps.float() - maps.float().mean((2, 3), keepdim=True), dim=1)
    return (maps * maps[:, :, cell[0], cell[1], None, None]).sum(1)


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
