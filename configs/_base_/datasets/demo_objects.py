# The embedded demo set, rendered on first use (ODIS_DEMO_ROOT in the environment names another folder).
_base_ = './coco_objects.py'

train_dataloader = _base_.train_dataloader
train_dataloader.merge(
    dict(
        batch_size=128,
        num_workers=1,
        pin_memory=False,
        dataset=dict(type='DemoObjectDataset', data_root='{{$ODIS_DEMO_ROOT:data/odis_demo}}'),
    )
)
steps = {step.type: step for step in train_dataloader.dataset.pipeline}
sample_views, photometric = steps['SampleViews'], steps['PhotometricViews']
# Views of about the image's own resolution that show their object large: of crops like the recipes', shrunk to this
# size, a supervised classifier learns the classes far more slowly, as the surface patterns blur away. No local views: 2
# x 2 patches.
sample_views.patch_size = 8
del sample_views.views[1]
sample_views.views[0].merge(dict(size=32, scale=(0.04, 0.16)))
sample_views.min_cover = (0.4, 0.4)
photometric.merge(
    dict(hue=0.025, gray_prob=0.5, blur_prob=(0.2, 0.2, 0.0), blur_sigma=(0.1, 1.0), solarize_prob=(0.0, 0.0, 0.0))
)  # small, muted images
del steps, sample_views, photometric
