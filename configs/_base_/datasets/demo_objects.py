# The embedded demo set, rendered on first use (ODIS_DEMO_ROOT in the environment names another folder).
_base_ = './coco_objects.py'

train_dataloader = _base_.train_dataloader
train_dataloader.merge(dict(
    batch_size=32,
    num_workers=1,
    pin_memory=False,
    dataset=dict(type='DemoObjectDataset', data_root='{{$ODIS_DEMO_ROOT:data/odis_demo}}')))
sample_views, photometric = train_dataloader.dataset.pipeline[1], train_dataloader.dataset.pipeline[3]
sample_views.patch_size = 8
# an object of 18-72 px must stay a few patches wide in a view of 6 x 6 patches
sample_views.views[0].merge(dict(size=48, scale=(0.2, 0.8)))
sample_views.views[1].merge(dict(num=2, size=24, scale=(0.05, 0.2)))
sample_views.local_touch = True  # most small crops of a multi-object image miss the target, and could not predict it
photometric.merge(dict(hue=0.025, gray_prob=0.5, blur_prob=(0.3, 0.1, 0.3)))  # the images are small and muted
del sample_views, photometric
