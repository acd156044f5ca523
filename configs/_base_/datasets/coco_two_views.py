# COCO train2017 as plain images: two random crops of each, flips, no objects, no labels.
_base_ = './coco_objects.py'

train_dataloader = _base_.train_dataloader
steps = {step.type: step for step in train_dataloader.dataset.pipeline}
sample_views = dict(
    type='SampleViews',
    views=[
        dict(role='global', num=2, size=224, scale=(0.25, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)
    ],  # iBOT recipe's global views
    patch_size=16,
    target_rule='whole_image',
)
train_dataloader.dataset.pipeline = [  # no masked image modelling
    steps['LoadObjectImage'],
    sample_views,
    steps['RenderViews'],
    steps['PhotometricViews'],
    steps['PackViews'],
]
del steps, sample_views
