# ODIS on the embedded demo set, continued from weights of the demo recipes' ViT (gtsa_demo, alfm_demo): --init FILE.
# What protects the weights is that of odis_vits_continue_coco; odis_demo --init FILE is the same run without it. A
# demonstration, not a recipe (docs/evidence/continue.md).
_base_ = './odis_demo.py'

optim_wrapper = dict(
    optimizer=dict(lr=3e-4),  # odis_demo: 1e-3
    paramwise_cfg=dict(layer_decay_rate=0.75),
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = 1
train_cfg = dict(max_epochs=10)
default_hooks = dict(
    schedule=dict(warm_heads=0.1),
    regions=dict(
        type='RegionProxyHook',
        data_root='{{$ODIS_DEMO_ROOT:data/odis_demo}}',
        scales=(128,),
        interval=2,
        random_baseline=False,
        keep_best=True,
    ),
)
