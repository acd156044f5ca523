# iBOT on 200 to 5,000 images of one's own: odis_small with the whole image as the object and plain crops, which are
# smaller than iBOT's, as a detector of few pixels sees objects small (docs/evidence/small_data_search.md). DINO is the
# same with model.lambda_patch=0.
_base_ = './odis_small.py'

model = dict(masked_attention=False, lambda_pool=0.0)
train_dataloader = _base_.train_dataloader
next(step for step in train_dataloader.dataset.pipeline if step.type == 'SampleViews').merge(
    dict(
        target_rule='whole_image',
        object_aware=False,
        others=0,
        views=[dict(role='global', num=2, size=48, scale=(0.1, 0.6), ratio=(3 / 4, 4 / 3), flip=0.5)],
    )
)
