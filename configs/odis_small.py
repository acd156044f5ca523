# ODIS on 200 to 5,000 images of one's own: `odis-mm pretrain --data DIR` fills in data, views and length.
_base_ = [
    './_base_/models/odis_demo.py',
    './_base_/datasets/small_objects.py',
    './_base_/schedules/selfsup_small.py',
    './_base_/default_runtime.py',
]

model = dict(backbone=dict(img_size=64))
