# The embedded demo set as plain images: two random crops of each (see coco_two_views.py).
_base_ = './demo_objects.py'

train_dataloader = _base_.train_dataloader
pipeline = train_dataloader.dataset.pipeline
pipeline[1] = dict(type='SampleViews', views=pipeline[1].views[:1], patch_size=8, target_rule='whole_image')
pipeline[4:] = pipeline[5:]  # no masked image modelling
del pipeline
