# ALFM (our reconstruction) on the embedded demo set: minutes on two CPU cores. A demonstration, not a recipe.
_base_ = [
    './_base_/models/alfm_demo.py',
    './_base_/datasets/demo_two_views.py',
    './_base_/schedules/selfsup_100e.py',
    './_base_/default_runtime.py',
]

model = dict(backbone=dict(init_std=0.05))  # 0.02 is for wider models (docs/evidence/NOTES.md)
auto_scale_lr = dict(base_batch_size=32)  # lr 5e-4 at this batch
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = 3
train_cfg = dict(max_epochs=30)
default_hooks = dict(schedule=dict(weight_decay_end=0.04))  # constant: the runs are short

tunable = {  # knobs of `odis-mm compare` with tuning
    'optim_wrapper.optimizer.lr': [2.5e-4, 5e-4, 1e-3, 2e-3],
    'model.lambda_cdlp': [0.0, 0.03, 0.1, 0.3, 1.0],
    'model.head.lambda_entropy': [0.1, 0.3, 1.0],
}
