import torch
from tests.device.trial import Trial


def waits(name):
    from tests.device import standin

    t = Trial(name, "cuda", torch.float32)
    t.step()
    standin.log.syncs.clear()
    t.step()
    return dict(standin.log.syncs), t.method.replays


def casts():
    from tests.device import standin

    trial = Trial("at", "cuda", torch.float32, steps=10, network="preact-resnet18")
    trial.model.autocast_dtype = torch.bfloat16
    trial.step()
    standin.log.casts.clear()
    trial.step()
    return dict(standin.log.casts)
