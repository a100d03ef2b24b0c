"""How fast diffusers or denoising-diffusion-pytorch trains a U-Net and calls it in sampling: prints one JSON line.

Runs in the peers' environment and does not import likely. `measured` is what both sides are timed with.
"""

import argparse
import json
import statistics
import sys
import time
import types

import torch
from torch import nn
from torch.nn import functional as F

BATCH, CALLS, BLOCKS = 32, 4, 3  # examples of a step; calls of the net in a sampling run; blocks of which the median is taken


def without_compiled_torchvision():
    """torchvision's wheel may be of another build than torch's; both peers use its Python parts alone."""
    for name in ("_meta_registrations", "_autograd_registrations"):
        sys.modules.setdefault(f"torchvision.{name}", types.ModuleType(f"torchvision.{name}"))


def diffusers_net(side, channels):
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    net = UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    schedule, sampler = DDPMScheduler(1000), DDIMScheduler(1000)

    def loss(x):
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        return F.mse_loss(net(schedule.add_noise(x, noise, t), t).sample.float(), noise)

    def sample(n):
        sampler.set_timesteps(CALLS)
        x = torch.randn(n, channels, side, side)
        for t in sampler.timesteps:
            x = sampler.step(net(x, t).sample.float(), t, x).prev_sample

    return net, loss, sample


def denoising_diffusion_net(side, channels):
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    net = Unet(dim=32, dim_mults=(1, 2), channels=channels, flash_attn=False)
    model = GaussianDiffusion(net, image_size=side, timesteps=1000, sampling_timesteps=CALLS)
    return net, lambda x: model((x + 1) / 2), lambda n: model.sample(batch_size=n)


LIBRARIES = {"diffusers": diffusers_net, "denoising-diffusion-pytorch": denoising_diffusion_net}


def rate(action, seconds):
    """Times per process-CPU second, the median of blocks, after a warm-up."""
    action()
    start = time.process_time()
    action()
    times = max(1, int(seconds / BLOCKS / max(time.process_time() - start, 1e-6)))
    found = []
    for _ in range(BLOCKS):
        start = time.process_time()
        for _ in range(times):
            action()
        found.append(times / (time.process_time() - start))
    return statistics.median(found)


def measured(net, loss, sample, x, seconds, bf16):
    """Training images and network calls in sampling (one image through the net each), per second.

    A training step is noise, forward, backward, clip and fused AdamW.
    """
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            value = loss(x)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()

    def draw():
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            sample(BATCH)

    net.train()
    trained = BATCH * rate(step, seconds)
    net.eval()
    return {"train_images_per_s": trained, "sampler_calls_per_s": BATCH * CALLS * rate(draw, seconds)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--channels", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    without_compiled_torchvision()
    net, loss, sample = LIBRARIES[arguments.library](arguments.side, arguments.channels)
    x = 2 * torch.rand(BATCH, arguments.channels, arguments.side, arguments.side) - 1
    found = {name: measured(net, loss, sample, x, arguments.seconds, name == "bf16") for name in ("float32", "bf16")}
    print(json.dumps({**found, "parameters": sum(p.numel() for p in net.parameters())}))


if __name__ == "__main__":
    main()
