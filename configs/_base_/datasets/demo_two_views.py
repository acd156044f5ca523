# The embedded demo set as plain images: two random crops of each (see coco_two_views.py), large enough to overlap.
_base_ = './demo_objects.py'

train_dataloader = _base_.train_dataloader
train_dataloader.batch_size = 32
steps = {step.type: step for step in train_dataloader.dataset.pipeline}
sample_views = dict(
    type='SampleViews',
    patch_size=8,
    target_rule='whole_image',
    views=[dict(role='global', num=2, size=48, scale=(0.2, 0.8), ratio=(3 / 4, 4 / 3), flip=0.5)],
)
train_dataloader.dataset.pipeline = [  # no masked image modelling
    steps['LoadObjectImage'],
    sample_views,
    steps['RenderViews'],
    steps['PhotometricViews'],
    steps['PackViews'],
]
del steps, sample_views
