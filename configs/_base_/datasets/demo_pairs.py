# The embedded demo set as plain images: turned views that overlap pair by pair (see coco_pairs.py), in the colours of
# the other methods' demo (demo_objects.py).
_base_ = './demo_objects.py'

train_dataloader = _base_.train_dataloader
train_dataloader.batch_size = 32
steps = {step.type: step for step in train_dataloader.dataset.pipeline}
steps['RenderViews'].interpolation = 'bilinear'  # the paper's release
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
train_dataloader.dataset.pipeline = [
    steps['LoadObjectImage'],
    sample_views,
    steps['RenderViews'],
    steps['PhotometricViews'],
    steps['PackViews'],
]
del steps, sample_views
