# ALFM (our reconstruction), ViT-S/16, COCO train2017, 100 epochs at a global batch of 512 (8 ranks x 64; see
# odis_vits_coco.py).
_base_ = [
    './_base_/models/alfm_vits.py',
    './_base_/datasets/coco_two_views.py',
    './_base_/schedules/selfsup_100e.py',
    './_base_/default_runtime.py',
]
