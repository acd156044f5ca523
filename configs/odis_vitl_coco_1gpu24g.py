# ODIS, ViT-L/16, COCO on one GPU with 24 GB: bf16, activation checkpointing, a global batch of 256 = 32 x 8
# accumulated. What it needs, without running it: tools/analysis/benchmark.py odis_vitl_coco_1gpu24g --memory-only
_base_ = './odis_vitl_coco.py'

# a slower teacher, as small batches want (dino#104)
model = dict(backbone=dict(with_cp=True), momentum=dict(start=0.998))
optim_wrapper = dict(type='AutocastOptimWrapper', accumulative_counts=8)
train_dataloader = dict(batch_size=32)
