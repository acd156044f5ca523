# ODIS, ViT-B/16, ImageNet-1k, 400 epochs at a global batch of 1024 (16 ranks x 64).
_base_ = [
    './_base_/models/odis_vitb.py',
    './_base_/datasets/imagenet_objects.py',
    './_base_/schedules/selfsup_100e.py',
    './_base_/default_runtime.py',
]

# iBOT's practice for ViT-B and L, not checked against its argument files: ours
optim_wrapper = dict(optimizer=dict(lr=7.5e-4), clip_grad=dict(max_norm=0.3))
train_dataloader = _base_.train_dataloader
train_dataloader.dataset.pipeline[1].views[0].scale = (0.32, 1.0)
train_dataloader.dataset.pipeline[1].views[1].scale = (0.05, 0.32)
train_dataloader.batch_size = 64
train_cfg = dict(max_epochs=400)
