# ODIS on the embedded demo set, continued from weights of the demo recipes' ViT (gtsa_demo, alfm_demo): --init FILE.
# The settings of odis_vits_continue_coco on the small ViT; odis_demo_short --init FILE is the same run without them. A
# demonstration, not a recipe.
_base_ = './odis_demo_short.py'

max_iters = 620  # 10 epochs of 2,000 images
model = dict(momentum=dict(start=0.996))  # the demo's teacher is faster than others
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.75))  # a tenth of the demo's rate
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
train_cfg = dict(max_iters=max_iters)
default_hooks = dict(
    schedule=dict(warm_heads=0.1),
    regions=dict(
        type='RegionProxyHook',
        data_root='{{$ODIS_DEMO_ROOT:data/odis_demo}}',
        sizes=(128,),
        interval=2,
        random_baseline=False,
        keep_best=True,
    ),
)
