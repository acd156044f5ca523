"""The quickstart's picture: loss curves, views with their patch masks, where [OBJ] looks or what patches are alike, detections."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmpretrain.registry import TRANSFORMS

from ..config import load_config
from ..datasets.demo import CLASSES
from ..structures import View, box_patch_mask
from .demo import DETECTOR, SIZE, demo_objects, load_teacher
from .stages import scalars

matplotlib.use('Agg')
from matplotlib import pyplot as plt

COLUMNS = 6


def draw(path: Path, config: str, export: Path, root: Path, work_dir: Path) -> None:
    """Draws ``path`` (PNG) from the folders that the quickstart left in ``work_dir``."""
    figure = plt.figure(figsize=(2.5 * COLUMNS, 15), layout='constrained')
    rows = figure.subfigures(5, 1, height_ratios=(1.2, 1, 1, 1, 1))
    _losses(rows[0], work_dir)
    _views(rows[1], config, root)
    _attention(rows[2], config, export, root)
    for row, name in ((rows[3], 'pretrained'), (rows[4], 'random')):
        _detections(row, root, work_dir / f'detector_{name}', f'Detections (score > 0.3), backbone {name}')
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _losses(figure, work_dir: Path) -> None:
    left, right = figure.subplots(1, 2)
    records = [r for r in scalars(work_dir / 'pretrain') if 'loss' in r]
    for key in sorted({key for r in records for key in r if key.startswith('loss_') or key == 'teacher_entropy'}):
        left.plot(*zip(*((r['step'], r[key]) for r in records if key in r)), label=key)  # some losses begin later
    left.set(title='Pretraining', xlabel='iteration')
    for name in ('pretrained', 'random'):
        records = [r for r in scalars(work_dir / f'detector_{name}') if 'loss' in r]
        right.plot([r['step'] for r in records], [r['loss'] for r in records], label=f'backbone {name}')
    right.set(title='Mask R-CNN: training loss', xlabel='iteration')
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)


def _views(figure, config: str, root: Path) -> None:
    """One image with its crops, then its views; if there is a target, patches outside of it are darkened."""
    pipeline = load_config(config).train_dataloader.dataset.pipeline[:3]  # load, sample, render
    init_default_scope('mmpretrain')
    results = demo_objects(root, 'train', 1).get_data_info(0)
    results['rng'] = np.random.default_rng(0)
    for step in pipeline:
        results = TRANSFORMS.build(step)(results)
    axes = figure.subplots(1, COLUMNS)
    axes[0].imshow(results['img'])
    target = results.get('target', -1)
    figure.suptitle(
        'Views of one image: crops' + (', box of the target, and the patches that [OBJ] sees' if target >= 0 else '')
    )
    if target >= 0:
        _box(axes[0], results['bboxes'][target], 'yellow')
    for view, color in zip(results['views'], ('red', 'orange', *['white'] * COLUMNS)):
        x, y, w, h = view.crop
        _box(axes[0], (x, y, x + w, y + h), color, width=1)
    masks = results['patch_masks'] if target >= 0 else [np.ones((1, 1))] * len(results['pixels'])
    for ax, pixels, mask in zip(axes[1:], results['pixels'], masks):
        ax.imshow(_shade(pixels, np.asarray(mask, float)))
    for ax in axes[1 + len(results['pixels']) :]:
        ax.axis('off')
    _bare(axes)


def _attention(figure, config: str, export: Path, root: Path) -> None:
    """Where [OBJ] looks; for a method that does not train that token, which patches are like those of an object."""
    objects = load_config(config).model.type == 'ODIS'
    figure.suptitle(
        "Where the teacher's [OBJ] looks in the last block, unmasked (left of each pair) and given a box (right)"
        if objects
        else "An object (left of each pair), and how similar the teacher's patches are to the mean of those in its box (right)"
    )
    backbone, preprocessor = load_teacher(config, export)
    patch = backbone.patch_embed.projection.stride[0]
    axes = figure.subplots(1, COLUMNS)
    for i, sample in enumerate(demo_objects(root, 'val', COLUMNS // 2)):
        box = np.asarray(sample['bboxes'], float)[0]
        inputs = preprocessor(dict(inputs=torch.from_numpy(sample['img']).permute(2, 0, 1)[None]))['inputs']
        mask = torch.from_numpy(np.asarray(box_patch_mask(box, View((0, 0, SIZE, SIZE), (SIZE, SIZE)), patch)))
        if objects:
            maps = [backbone.object_attention_map(inputs, given)[0] for given in (None, mask.flatten()[None])]
        else:
            with torch.no_grad():
                patches = F.normalize(backbone(inputs)[-1][0, backbone.num_leading_tokens :], dim=-1)  # [N, D]
            cosine = F.cosine_similarity(patches, patches[mask.flatten()].mean(0, keepdim=True))
            maps = [torch.ones_like(mask, dtype=torch.float32), (cosine - cosine.min()).view_as(mask)]
        for ax, weights in zip(axes[2 * i :], maps):
            ax.imshow(_shade(sample['img'], (weights / weights.max()).numpy()))
        _box(axes[2 * i + objects], box, 'yellow')
    _bare(axes)


def _detections(figure, root: Path, folder: Path, title: str) -> None:
    from mmdet.apis import inference_detector, init_detector

    figure.suptitle(title)
    checkpoint = sorted(folder.glob('iter_*.pth'), key=lambda p: int(p.stem.split('_')[1]))[-1]
    images = list(demo_objects(root, 'val', COLUMNS))
    init_default_scope('mmdet')  # after the images, which are read in mmpretrain's
    model = init_detector(load_config(DETECTOR), str(checkpoint), device='cpu')
    axes = figure.subplots(1, COLUMNS)
    for ax, info in zip(axes, images):
        found = inference_detector(
            model, np.ascontiguousarray(info['img'][..., ::-1])
        ).pred_instances  # mmdet expects BGR
        ax.imshow(info['img'])
        for box, label, score in zip(found.bboxes.numpy(), found.labels.tolist(), found.scores.tolist()):
            if score > 0.3:
                _box(ax, box, f'C{label}')
                ax.text(
                    box[0],
                    box[1],
                    f'{CLASSES[label]} {score:.1f}',
                    fontsize=6,
                    color='white',
                    backgroundcolor=f'C{label}',
                    clip_on=True,
                )
        ax.set_xlim(0, SIZE)
        ax.set_ylim(SIZE, 0)
    _bare(axes)


def _shade(pixels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Pixels [H, W, 3] darkened where the patch map ``weight`` in 0..1 is low."""
    scale = np.kron(weight, np.ones((pixels.shape[0] // weight.shape[0], pixels.shape[1] // weight.shape[1])))
    return (pixels * (0.3 + 0.7 * scale[..., None])).astype(np.uint8)


def _box(ax, box, color, width: float = 1.5) -> None:
    x1, y1, x2, y2 = box
    ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linewidth=width))


def _bare(axes) -> None:
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
