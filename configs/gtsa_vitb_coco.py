# GTSA, ViT-B/16, COCO train2017, 100 epochs at a global batch of 512 (16 ranks x 32). Not in the paper: this project's
# defaults.
_base_ = [
    './_base_/models/gtsa_vitb.py',
    './_base_/datasets/coco_pairs.py',
    './_base_/schedules/selfsup_100e.py',
    './_base_/default_runtime.py',
]

# iBOT's practice for ViT-B and L, not checked against its argument files: ours
optim_wrapper = dict(optimizer=dict(lr=7.5e-4), clip_grad=dict(max_norm=0.3))
train_dataloader = dict(batch_size=32)
default_hooks = dict(schedule=dict(freeze_prototypes_epochs=0))  # there are no prototypes
