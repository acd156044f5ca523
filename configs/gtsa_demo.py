# GTSA on the embedded demo set: minutes on two CPU cores. A demonstration, not a recipe.
_base_ = [
    './_base_/models/gtsa_demo.py',
    './_base_/datasets/demo_pairs.py',
    './_base_/schedules/selfsup_100e.py',
    './_base_/default_runtime.py',
]

model = dict(backbone=dict(init_std=0.05))  # 0.02 is for wider models (docs/evidence/NOTES.md)
auto_scale_lr = dict(base_batch_size=32)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = 3
train_cfg = dict(max_epochs=30)
default_hooks = dict(schedule=dict(freeze_prototypes_epochs=0))  # there are no prototypes

tunable = {  # knobs of `odis-mm compare` with tuning
    'optim_wrapper.optimizer.lr': [2.5e-4, 5e-4, 1e-3, 2e-3],
    'model.head.lambda_correspondence': [0.0, 0.5, 1.0],
    'model.head.lambda_rotation': [0.0, 0.5, 1.0],
}
