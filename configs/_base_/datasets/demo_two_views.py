# The embedded demo set as plain images: two random crops of each (see coco_two_views.py), large enough to overlap.
_base_ = './demo_objects.py'

train_dataloader = _base_.train_dataloader
train_dataloader.batch_size = 32
pipeline = train_dataloader.dataset.pipeline
pipeline[1] = dict(
    type='SampleViews',
    patch_size=8,
    target_rule='whole_image',
    views=[dict(role='global', num=2, size=48, scale=(0.2, 0.8), ratio=(3 / 4, 4 / 3), flip=0.5)],
)
pipeline[4:] = pipeline[5:]  # no masked image modelling
del pipeline
