# COCO train2017 as plain images: two random crops of each, flips, no objects, no labels.
_base_ = './coco_objects.py'

train_dataloader = _base_.train_dataloader
pipeline = train_dataloader.dataset.pipeline
pipeline[1] = dict(
    type='SampleViews',
    views=[
        dict(role='global', num=2, size=224, scale=(0.25, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)
    ],  # iBOT recipe's global views
    patch_size=16,
    target_rule='whole_image',
)
pipeline[4:] = pipeline[5:]  # no masked image modelling
del pipeline
