# ODIS, ViT-S/16, COCO on one GPU with 24 GB: bf16, activation checkpointing, a global batch of 256 = 64 x 4
# accumulated.
# Teacher and centers move once per optimizer step; the teacher follows more slowly than at 512, as small batches want
# (dino#104).
_base_ = './odis_vits_coco.py'

model = dict(backbone=dict(with_cp=True), momentum=dict(start=0.998))
optim_wrapper = dict(type='AutocastOptimWrapper', accumulative_counts=4)
