"""Does GTSA's classifier read the rotation of images that it has not been trained on?

    python -m odis_mm.evaluation.rotation gtsa_vits_coco work_dirs/gtsa_vits_coco/epoch_100.pth --data-root data/coco --data-prefix val2017
"""
import argparse
from typing import List, Optional

import numpy as np
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS

from ..apis import load_config
from ..cli import _guarded
from ..datasets.transforms import render_view
from ..structures import View
from ..transfer import read_checkpoint


@torch.no_grad()
def rotation_accuracy(model: torch.nn.Module, dataset, size: int, batch_size: int = 16) -> dict:
    """Share of right answers when the central square of every image is shown in all four orientations.

    Args:
        model: A ``GTSA`` with its rotation classifier; the student answers, as it is what the classifier was trained on.
        dataset: Images with ``img`` uint8 [H, W, 3].
        size: Pixels per side that the square is resized to.
        batch_size: Images a forward pass, four views each.

    Returns:
        ``accuracy`` in percent (25: chance), ``standard_error`` of it over the images, whose four answers belong together, and
        ``images``, their number.
    """
    model.eval()
    device, right = next(model.parameters()).device, []
    for start in range(0, len(dataset), batch_size):
        views = []
        for index in range(start, min(start + batch_size, len(dataset))):
            image = dataset[index]['img']
            height, width = image.shape[:2]
            side = min(height, width)
            crop = ((width - side) // 2, (height - side) // 2, side, side)
            views += [render_view(image, View(crop, (size, size), False, turns)) for turns in range(4)]
        inputs = model.data_preprocessor(dict(inputs=torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)))['inputs']
        answers = model.predict_rotation(inputs.to(device)).argmax(-1).view(-1, 4)  # [images, turns]
        right.append((answers == torch.arange(4, device=device)).float().mean(1).cpu())
    right = 100 * torch.cat(right)
    error = right.std().item() / len(right)**.5 if len(right) > 1 else float('nan')
    return dict(accuracy=right.mean().item(), standard_error=error, images=len(right))


def load_model(config: str, checkpoint: str) -> torch.nn.Module:
    """The whole model of a pretraining config with the weights of its ``epoch_N.pth``.

    Raises:
        ValueError: the config is not GTSA's, has no rotation classifier, or the file holds another model.
    """
    cfg = load_config(config)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    if not getattr(getattr(model, 'head', None), 'lambda_rotation', 0):
        raise ValueError(f'{config} has no rotation classifier: take a GTSA config with head.lambda_rotation above 0.')
    state, own = read_checkpoint(checkpoint), model.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if wrong:
        raise ValueError(f'{checkpoint} does not hold {wrong[0]} as {config} has it: take the epoch_N.pth of a run of this config '
                         '(the *_backbone.pth beside it has no classifier).')
    model.load_state_dict(state)
    return model


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m odis_mm.evaluation.rotation', description=__doc__.splitlines()[0])
    parser.add_argument('config', help='of the pretraining: path, or name of a shipped one')
    parser.add_argument('checkpoint', help='epoch_N.pth of the pretraining')
    parser.add_argument('--data-root', required=True, help='of images that were not trained on')
    parser.add_argument('--data-prefix', default='', help='image folder below it')
    parser.add_argument('--ann-file', default='', help='json or list below it that names the images; default: all of the folder')
    parser.add_argument('--size', type=int, help="pixels per side (default: that of the config's global views)")
    args = parser.parse_args(argv)

    def work() -> None:
        model = load_model(args.config, args.checkpoint)
        dataset = DATASETS.build(dict(type='ObjectDataset', data_root=args.data_root, data_prefix=args.data_prefix,
                                      ann_file=args.ann_file, with_masks=False, pipeline=[dict(type='LoadObjectImage')]))
        result = rotation_accuracy(model, dataset, args.size or model.backbone.img_size[0])
        print(f'rotation accuracy {result["accuracy"]:.1f} % +- {result["standard_error"]:.1f} (standard error), {result["images"]} images '
              'in four orientations; chance 25 %')

    _guarded(work)


if __name__ == '__main__':
    main()
