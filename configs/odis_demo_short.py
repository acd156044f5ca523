# odis_small on the demo set, for runs of a minute of one core, in which odis_demo's prototypes learn nothing yet. The
# views have the scale of odis_demo's. A demonstration, not a recipe.
_base_ = './odis_small.py'

model = dict(backbone=dict(img_size=32))
train_dataloader = _base_.train_dataloader
train_dataloader.dataset.merge(
    dict(
        type='DemoObjectDataset',
        data_root='{{$ODIS_DEMO_ROOT:data/odis_demo}}',
        ann_file='annotations/instances_train2017.json',
        data_prefix='train2017',
    )
)
next(step for step in train_dataloader.dataset.pipeline if step.type == 'SampleViews').merge(
    dict(min_cover=0.2, views=[dict(role='global', num=2, size=32, scale=(0.04, 0.16), ratio=(3 / 4, 4 / 3), flip=0.5)])
)
