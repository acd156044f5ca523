#!/usr/bin/env python
"""Write model-index.yml and the metafiles that it names, from the recipes in configs/: python tools/misc/metafiles.py

They are what ``mim search odis_mm`` and ``mim download odis_mm --config NAME`` read.
"""

import sys
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a checkout works without being installed

from odis_mm.config import load_config, shipped_configs  # noqa: E402

HEAD = (
    '# Written by tools/misc/metafiles.py. Weights: none are published; mim asks for a list, and brings the config.\n'
)
PAPERS = {  # collection: title, address
    'ODIS': ('Object-level Self-Distillation for Vision Pretraining', 'https://arxiv.org/abs/2506.05409'),
    'iBOT': ('iBOT: Image BERT Pre-Training with Online Tokenizer', 'https://arxiv.org/abs/2111.07832'),
    'DINO': ('Emerging Properties in Self-Supervised Vision Transformers', 'https://arxiv.org/abs/2104.14294'),
    'GTSA': (
        'Self-Supervised Learning from Non-Object Centric Images with a Geometric Transformation Sensitive '
        'Architecture',
        'https://arxiv.org/abs/2304.08014',
    ),
    'ALFM': ('Aligning local features from multi-view, Knowledge-Based Systems 330, 114671', ''),
    'MaskRCNN': ('Mask R-CNN', 'https://arxiv.org/abs/1703.06870'),
    'FasterRCNN': (
        'Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks',
        'https://arxiv.org/abs/1506.01497',
    ),
    'CascadeRCNN': ('Cascade R-CNN: Delving into High Quality Object Detection', 'https://arxiv.org/abs/1712.00726'),
    'RetinaNet': ('Focal Loss for Dense Object Detection', 'https://arxiv.org/abs/1708.02002'),
    'FCOS': ('FCOS: Fully Convolutional One-Stage Object Detection', 'https://arxiv.org/abs/1904.01355'),
    'DINODetector': (
        'DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection',
        'https://arxiv.org/abs/2203.03605',
    ),
}
ARCHITECTURES = {'deit-small': 'ViT-S', 'base': 'ViT-B', 'large': 'ViT-L'}
DATA = {  # the first word of a data root that a recipe names
    'coco': 'COCO train2017',
    'imagenet': 'ImageNet-1k',
    'ade20k': 'ADE20K',
    'odis_demo': 'the rendered demo set',
}


def metafiles() -> Dict[str, str]:
    """Return the content of each file by its path."""
    files: Dict[str, Dict[str, List[str]]] = {}  # file: collection: its models
    for name in shipped_configs():
        folder, _, recipe = name.rpartition('/')
        collection, model = describe(name)
        algorithm = dict(dino='ibot').get(recipe.partition('_')[0], recipe.partition('_')[0])
        path = f'configs/{folder}/metafile.yml' if folder else f'configs/metafile_{algorithm}.yml'
        files.setdefault(path, {}).setdefault(collection, []).append(model)
    content = {}
    for path, collections in files.items():
        heads = ''.join(head(collection) for collection in collections)
        content[path] = f'{HEAD}Collections:\n{heads}\nModels:\n' + '\n'.join(sum(collections.values(), []))
    content['model-index.yml'] = HEAD + 'Import:\n' + ''.join(f'  - {path}\n' for path in files)
    return content


def head(collection: str) -> str:
    """Return the entry of a collection; one without a paper of its own has its name alone."""
    title, address = PAPERS.get(collection, ('', ''))
    paper = f"    Paper:\n      Title: '{title}'\n" if title else ''
    return f'  - Name: {collection}\n{paper}' + (f'      URL: {address}\n' if address else '')


def describe(name: str) -> tuple:
    """Return the collection of a recipe, and its entry."""
    cfg, recipe = load_config(name), name.rpartition('/')[2]
    collection = {'ibot': 'iBOT', 'dino': 'DINO'}.get(recipe.partition('_')[0], cfg.model.type)
    if '/' in name and collection == 'DINO':
        collection = 'DINODetector'
    backbone, data = cfg.model.backbone, cfg.train_dataloader.dataset
    while 'dataset' in data and 'data_root' not in data:
        data = data.dataset
    root = Path(str(data.get('data_root'))).name
    arch = backbone.get('arch')
    if isinstance(arch, str):
        architecture = f'{ARCHITECTURES.get(arch, arch)}/{backbone.get("patch_size", 16)}'
    elif arch is None:
        architecture = f'{backbone.type}-{backbone.get("depth", "")}'.rstrip('-')
    else:
        architecture = f'ViT of {arch["num_layers"]} blocks, {arch["embed_dims"]} wide, patch {backbone.patch_size}'
    length = cfg.train_cfg.get('max_epochs')
    time = f'Epochs: {length}' if length else f'Iterations: {cfg.train_cfg.max_iters}'
    return collection, (
        f'  - Name: {recipe}\n    In Collection: {collection}\n    Metadata:\n      Architecture: {architecture}\n'
        f'      Training Data: {DATA.get(root, "your own")}\n      {time}\n'
        f"    Config: configs/{name}.py\n    Weights: ['']\n"
    )


if __name__ == '__main__':
    for path, text in metafiles().items():
        (ROOT / path).write_text(text, encoding='utf-8')
