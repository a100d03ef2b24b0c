"""Samples of digits by diffusers or denoising-diffusion-pytorch after so many process-CPU seconds: prints one JSON line.

Runs in the peers' environment and does not import likely. Nets of 1.0 and 0.8 M parameters, AdamW at 1e-3 (the better of two tried) with a
cosine to zero, batches of 64, averaged weights, and 50 DDIM steps; samples go to a file, to be judged with all others.
"""

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1]))
from arrays import split
from diffusion_speed import without_compiled_torchvision

BATCH, RATE, DECAY, CALLS = 64, 1e-3, 0.995, 50


def diffusers_model(schedule, prediction):
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    noise, sampler = (kind(1000, beta_schedule=schedule, prediction_type=prediction) for kind in (DDPMScheduler, DDIMScheduler))

    def loss(x):
        eps, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        target = eps if prediction == "epsilon" else noise.get_velocity(x, eps, t)
        return F.mse_loss(net(noise.add_noise(x, eps, t), t).sample, target)

    def sample(net, n):
        sampler.set_timesteps(CALLS)
        x = torch.randn(n, 1, 8, 8)
        for t in sampler.timesteps:
            x = sampler.step(net(x, t).sample, t, x).prev_sample
        return x

    return net, loss, sample


def denoising_diffusion_model():
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    net = Unet(dim=32, dim_mults=(1, 2), channels=1, flash_attn=False)
    model = GaussianDiffusion(net, image_size=8, timesteps=1000, sampling_timesteps=CALLS)

    def sample(net, n):
        model.model = net
        return 2 * model.sample(batch_size=n) - 1

    return net, lambda x: model((x + 1) / 2), sample


MODELS = {
    "diffusers": lambda: diffusers_model("linear", "epsilon"),
    "diffusers, cosine and v": lambda: diffusers_model("squaredcos_cap_v2", "v_prediction"),
    "denoising-diffusion-pytorch": denoising_diffusion_model,
}


def train(net, loss, x, seconds):
    """Averaged weights, and steps taken."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    averaged, steps, start = copy.deepcopy(net), 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        optimiser.param_groups[0]["lr"] = 0.5 * RATE * (1 + math.cos(math.pi * spent / seconds))
        value = loss(x[torch.randint(0, len(x), (BATCH,))])
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        steps += 1
        with torch.no_grad():
            weights = [list(each.parameters()) for each in (averaged, net)]
            torch._foreach_lerp_(*weights, 1 - min(DECAY, (1 + steps) / (10 + steps)))
    return averaged.eval(), steps


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=MODELS)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    without_compiled_torchvision()
    net, loss, sample = MODELS[arguments.library]()
    x = torch.from_numpy(split("digits")[0]).view(-1, 1, 8, 8) / 8 - 1
    averaged, steps = train(net, loss, x, arguments.seconds)
    start = time.process_time()
    with torch.no_grad():
        drawn = torch.cat([sample(averaged, n) for n in (120,) * (arguments.samples // 120)])
    rates = {"train_images_per_s": BATCH * steps / arguments.seconds, "samples_per_s": len(drawn) / (time.process_time() - start)}
    np.save(arguments.out, ((drawn + 1) * 8).round().clamp(0, 16).numpy())
    print(json.dumps({**rates, "steps": steps, "parameters": sum(p.numel() for p in net.parameters())}))


if __name__ == "__main__":
    main()
