# ALFM (our reconstruction) on 200 to 5,000 images of one's own, without objects: `odis-mm pretrain --data DIR --method
# alfm` fills in data and length. All numbers are ours, by trial on blood-cell photographs
# (docs/evidence/small_data_search.md).
_base_ = [
    './_base_/models/alfm_demo.py',
    './_base_/datasets/small_objects.py',
    './_base_/schedules/selfsup_small.py',
    './_base_/default_runtime.py',
]

model = dict(lambda_cdlp=0.3)  # with which the photographs were run; on chess, 0 gave the same
train_dataloader = _base_.train_dataloader
train_dataloader.batch_size = 48
auto_scale_lr = dict(base_batch_size=48)
train_dataloader.dataset.pipeline = [step for step in train_dataloader.dataset.pipeline if step.type != 'BlockMasks']
next(step for step in train_dataloader.dataset.pipeline if step.type == 'SampleViews').merge(
    dict(
        target_rule='whole_image',
        views=[dict(role='global', num=2, size=48, scale=(0.06, 0.3), ratio=(3 / 4, 4 / 3), flip=0.5)],
    )
)
default_hooks = dict(schedule=dict(weight_decay_end=0.04), checkpoint=dict(interval=None))  # constant; four in the run

tunable = {  # knobs of `odis-mm compare` with tuning
    'optim_wrapper.optimizer.lr': [5e-4, 1e-3, 2e-3],
    'model.lambda_cdlp': [0.0, 0.03, 0.1, 0.3, 1.0],
    'model.head.lambda_entropy': [0.1, 0.3, 1.0],
}
