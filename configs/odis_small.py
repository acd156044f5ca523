# ODIS on 200 to 5,000 images of one's own: `odis-mm pretrain --data DIR` fills in data, views and length. Weakly
# supervised, with boxes and without classes. All numbers that are not the paper's are ours, by trial on blood-cell
# photographs (docs/evidence/small_data_search.md).
_base_ = [
    './_base_/models/odis_demo.py',
    './_base_/datasets/small_objects.py',
    './_base_/schedules/selfsup_small.py',
    './_base_/default_runtime.py',
]

model = dict(
    backbone=dict(img_size=48),
    # 64 balanced prototypes say little where all objects look alike: embeddings are compared, and their coding rate
    # keeps them apart
    neck=dict(num_prototypes=0),
    head=dict(_delete_=True, type='EmbeddingHead', lambda_entropy=1.0, eps2=0.05),
    momentum=dict(start=0.95),  # at 0.99 half of a teacher's weights are still the initial ones after 150 steps
    lambda_patch=1.0,  # paper
    lambda_pool=1.0,  # the mean patches of the target and of six further objects: what a detector reads
)
train_dataloader = _base_.train_dataloader
next(step for step in train_dataloader.dataset.pipeline if step.type == 'SampleViews').merge(
    dict(
        target_rule='random',  # by area, large objects would be all that is seen
        others=6,
        views=[dict(role='global', num=2, size=48, scale=(0.06, 0.3), ratio=(3 / 4, 4 / 3), flip=0.5)],
    )
)
train_dataloader.batch_size = 32
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(
    schedule=dict(weight_decay_end=0.04, freeze_prototypes_epochs=0),  # constant; no prototypes
    checkpoint=dict(interval=None),  # four in the run
)

tunable = {  # knobs of `odis-mm compare` with tuning
    'optim_wrapper.optimizer.lr': [5e-4, 1e-3, 2e-3],
    'model.head.lambda_entropy': [0.3, 1.0, 3.0],
    'model.momentum.start': [0.9, 0.95, 0.99],
}
