# GTSA, ViT-S/16, COCO train2017, 100 epochs at a global batch of 512 (8 ranks x 64): the published recipe (arXiv
# 2304.08014).
_base_ = [
    './_base_/models/gtsa_vits.py',
    './_base_/datasets/coco_pairs.py',
    './_base_/schedules/selfsup_100e.py',
    './_base_/default_runtime.py',
]

default_hooks = dict(schedule=dict(freeze_prototypes_epochs=0))  # there are none
