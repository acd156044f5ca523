# COCO train2017 as plain images: turned views that overlap pair by pair; no flips, no objects, no labels (GTSA).
_base_ = './coco_objects.py'

train_dataloader = _base_.train_dataloader
train_dataloader.dataset.ann_file = ''  # every image of the folder
steps = {step.type: step for step in train_dataloader.dataset.pipeline}
steps['RenderViews'].interpolation = 'bilinear'  # the paper's release
sample_views = dict(
    type='SamplePairViews',
    views=[  # paper
        dict(role='global', num=2, size=224, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3)),
        dict(role='local', num=8, size=96, scale=(0.1, 0.3), ratio=(3 / 4, 4 / 3)),
    ],
    min_overlap=(0.02, 0.01),  # paper: share of the image that two globals have in common, and a local and a global
    tries=50,  # ours, after which the best try is kept; the release draws without end
    turns=True,  # paper: by 0, 90, 180 or 270 degrees
    patch_size=16,
)
steps['PhotometricViews'].merge(
    dict(  # paper
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        jitter_prob=0.8,
        gray_prob=0.2,
        blur_prob=(0.2, 0.2, 0.2),
        solarize_prob=(0.0, 0.0, 0.0),
    )
)
train_dataloader.dataset.pipeline = [
    steps['LoadObjectImage'],
    sample_views,
    steps['RenderViews'],
    steps['PhotometricViews'],
    steps['PackViews'],
]
del steps, sample_views
