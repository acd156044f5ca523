# The embedded demo set as plain images: turned views that overlap pair by pair (see coco_pairs.py), in the colours of the other
# methods' demo (demo_objects.py).
_base_ = './demo_objects.py'

train_dataloader = _base_.train_dataloader
train_dataloader.batch_size = 32
load, render, photometric, packing = [train_dataloader.dataset.pipeline[i] for i in (0, 2, 3, 5)]
render.interpolation = 'bilinear'  # the paper's release
sample_views = dict(
    type='SamplePairViews',
    views=[
        dict(role='global', num=2, size=48, scale=(0.2, 0.8), ratio=(3 / 4, 4 / 3)),
        dict(role='local', num=2, size=24, scale=(0.05, 0.2), ratio=(3 / 4, 4 / 3)),
    ],
    min_overlap=(0.02, 0.01),
    tries=50,
    turns=True,
    patch_size=8,
)
train_dataloader.dataset.pipeline = [load, sample_views, render, photometric, packing]
del load, sample_views, render, photometric, packing
