# GTSA, ViT-S/16, the training images of ADE20K: the recipe of COCO (gtsa_vits_coco.py) on other data. That length and
# batch suit these 20,210 images, a sixth of COCO's, is unchecked.
_base_ = [
    './_base_/models/gtsa_vits.py',
    './_base_/datasets/ade20k_pairs.py',
    './_base_/schedules/selfsup_100e.py',
    './_base_/default_runtime.py',
]

default_hooks = dict(schedule=dict(freeze_prototypes_epochs=0))  # there are no prototypes
