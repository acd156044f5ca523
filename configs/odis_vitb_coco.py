# ODIS, ViT-B/16, COCO train2017, 100 epochs at a global batch of 512 (16 ranks x 32; see odis_vits_coco.py).
_base_ = [
    './_base_/models/odis_vitb.py',
    './_base_/datasets/coco_objects.py',
    './_base_/schedules/selfsup_100e.py',
    './_base_/default_runtime.py',
]

# iBOT's practice for ViT-B and L, not checked against its argument files: ours
optim_wrapper = dict(optimizer=dict(lr=7.5e-4), clip_grad=dict(max_norm=0.3))
train_dataloader = _base_.train_dataloader
crops = {
    group.role: group
    for step in train_dataloader.dataset.pipeline
    if step.type == 'SampleViews'
    for group in step.views
}
crops['global'].scale = (0.32, 1.0)
crops['local'].scale = (0.05, 0.32)
del crops
train_dataloader.batch_size = 32
