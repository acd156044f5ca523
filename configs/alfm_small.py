# ALFM (our reconstruction) on 200 to 5,000 images of one's own, without objects.
_base_ = [
    './_base_/models/alfm_demo.py',
    './_base_/datasets/small_objects.py',
    './_base_/schedules/selfsup_small.py',
    './_base_/default_runtime.py',
]

model = dict(backbone=dict(img_size=64))
train_dataloader = _base_.train_dataloader
train_dataloader.dataset.pipeline = [step for step in train_dataloader.dataset.pipeline if step.type != 'BlockMasks']
next(step for step in train_dataloader.dataset.pipeline if step.type == 'SampleViews').merge(
    dict(
        target_rule='whole_image',
        views=[dict(role='global', num=2, size=64, scale=(0.2, 0.8), ratio=(3 / 4, 4 / 3), flip=0.5)],
    )
)
