# ODIS, ViT-S/16, ImageNet-1k, 800 epochs at a global batch of 1024 (8 ranks x 128): iBOT's documented recipe.
_base_ = [
    './_base_/models/odis_vits.py',
    './_base_/datasets/imagenet_objects.py',
    './_base_/schedules/selfsup_100e.py',
    './_base_/default_runtime.py',
]

train_cfg = dict(max_epochs=800)  # iBOT
