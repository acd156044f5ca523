# GTSA on 200 to 5,000 images of one's own, without objects. How the numbers were found:
# docs/evidence/small_data_search.md.
_base_ = [
    './_base_/models/gtsa_demo.py',
    './_base_/datasets/small_objects.py',
    './_base_/schedules/selfsup_small.py',
    './_base_/default_runtime.py',
]

model = dict(head=dict(correspondence_epoch=1))  # an epoch may be six steps
sample_views = dict(
    type='SamplePairViews',
    views=[
        dict(role='global', num=2, size=48, scale=(0.1, 0.5), ratio=(3 / 4, 4 / 3)),
        dict(role='local', num=2, size=24, scale=(0.03, 0.12), ratio=(3 / 4, 4 / 3)),
    ],
    min_overlap=(0.02, 0.01),  # paper
    tries=50,
    turns=True,
    patch_size=8,
)
train_dataloader = _base_.train_dataloader
train_dataloader.batch_size = 32
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(
    schedule=dict(weight_decay_end=0.04, freeze_prototypes_epochs=0),  # constant; no prototypes
    checkpoint=dict(interval=None),  # four in the run
)
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
