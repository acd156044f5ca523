"""Clipping apart from initial weights: see recipes_clip_init.md. An arm whose file is there is not run again.

python docs/benchmarks/clip_and_init.py COCO OUT     # COCO holds train2017/
"""

import json
import sys
from pathlib import Path
from unittest.mock import patch

from odis_mm import apis
from odis_mm.config import parse_options
from odis_mm.models.backbones import object_vit
from odis_mm.models.necks import global_local, projection

COMMON = """train_dataloader.dataset.data_prefix=train2017/ train_dataloader.dataset.data_fraction=0.33
train_dataloader.num_workers=0 train_dataloader.persistent_workers=False train_dataloader.batch_size=4
auto_scale_lr.base_batch_size=4 train_cfg.max_epochs=1 param_scheduler.0.end=0.5 param_scheduler.1.begin=0.5
model.backbone.img_size=64 train_dataloader.dataset.pipeline.1.views.0.size=64 default_hooks.checkpoint.interval=100
default_hooks.checkpoint.save_last=False default_hooks.logger.interval=1 log_processor.window_size=1 randomness.seed=0
train_dataloader.dataset.seed=0 default_hooks.views=None default_hooks.health=None default_hooks.export=None"""
LOCAL = 'train_dataloader.dataset.pipeline.1.views.1.size=32 train_dataloader.dataset.pipeline.1.views.1.num=2'
GTSA = 'model.head.crop_cells=2,1 model.head.num_matches=6,2 model.head.correspondence_epoch=0'
RECIPES = dict(odis_vits_coco=LOCAL, gtsa_vits_coco=f'{LOCAL} {GTSA}', alfm_vits_coco='model.head.num_cells=2')
CONVOLUTIONS = 'model.neck.init_cfg=None model.head.predictor.init_cfg=None'  # torch's default weights


def main(coco: str, out: Path) -> None:
    for recipe, options in RECIPES.items():
        for init in ('old', 'new'):
            for clip in ('old', 'new'):
                path = out / f'{recipe}_{init}init_{clip}clip.json'
                if path.exists():
                    continue
                words = [*COMMON.split(), *options.split(), f'train_dataloader.dataset.data_root={coco}/']
                words.append(f'optim_wrapper.clip_grad.per_tensor={clip == "new"}')
                if init == 'old' and recipe.startswith('gtsa'):
                    words += CONVOLUTIONS.split()
                if init == 'old':  # mmpretrain's and torch's weights stay
                    changes = [patch.object(m, 'init_linears', lambda _: None) for m in (object_vit, projection)]
                    changes.append(patch.object(global_local, 'init_linears', lambda _: None))
                else:
                    changes = []
                for change in changes:
                    change.start()
                apis.train(recipe, work_dir=str(out / path.stem), options=parse_options(words))
                patch.stopall()
                files = sorted((out / path.stem).glob('*/vis_data/scalars.json'))
                rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
                path.write_text(json.dumps([row for row in rows if 'loss' in row]))


if __name__ == '__main__':
    main(sys.argv[1], Path(sys.argv[2]))
