# The embedded demo set, rendered on first use (ODIS_DEMO_ROOT in the environment names another folder).
_base_ = './coco_objects.py'

train_dataloader = _base_.train_dataloader
train_dataloader.merge(dict(
    batch_size=32,
    num_workers=2,
    pin_memory=False,
    dataset=dict(type='DemoObjectDataset', data_root='{{$ODIS_DEMO_ROOT:data/odis_demo}}')))
sample_views, photometric = train_dataloader.dataset.pipeline[1], train_dataloader.dataset.pipeline[3]
sample_views.patch_size = 8
sample_views.views[0].size = 64
sample_views.views[1].merge(dict(num=4, size=32))
photometric.hue = 0.025  # with 0.1 a teacher this small drifts back to uniform
del sample_views, photometric
