"""One recipe a file: read the resolved config, call the library, write the artifact, return metrics.

Each declares its `STAGE` (`pipeline.engine.stage`, with the version that is bumped when its meaning changes), a light
`forecast` that the driver calls before anything is launched, and `run`, whose heavy imports stand inside it so that the
driver stays without torch.
"""
