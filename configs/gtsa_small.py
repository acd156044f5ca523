# GTSA on 200 to 5,000 images of one's own, without objects.
_base_ = [
    './_base_/models/gtsa_demo.py',
    './_base_/datasets/small_objects.py',
    './_base_/schedules/selfsup_small.py',
    './_base_/default_runtime.py',
]

model = dict(
    backbone=dict(img_size=64),
    head=dict(crop_cells=(5, 3), num_matches=(32, 8)),  # the maps have 8 x 8 and 4 x 4 cells: half of them are matched
)
sample_views = dict(
    type='SamplePairViews',
    views=[
        dict(role='global', num=2, size=64, scale=(0.2, 0.8), ratio=(3 / 4, 4 / 3)),
        dict(role='local', num=2, size=32, scale=(0.05, 0.2), ratio=(3 / 4, 4 / 3)),
    ],
    min_overlap=(0.02, 0.01),  # paper
    tries=50,
    turns=True,
    patch_size=8,
)
train_dataloader = _base_.train_dataloader
train_dataloader.dataset.pipeline = [
    sample_views if step.type == 'SampleViews' else step
    for step in train_dataloader.dataset.pipeline
    if step.type != 'BlockMasks'
]
del sample_views

tunable = {  # knobs of `odis-mm compare` with tuning
    'optim_wrapper.optimizer.lr': [5e-4, 1e-3, 2e-3],
    'model.head.lambda_correspondence': [0.0, 0.5, 1.0],
    'model.head.lambda_rotation': [0.0, 0.5, 1.0],
}
