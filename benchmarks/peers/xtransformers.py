"""x-transformers of nanoGPT's CPU shape, untrained: characters drawn per CPU second with its cache, for one stream and for many."""

import argparse
import json
import time

import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper


def rate(model: AutoregressiveWrapper, streams: int, length: int) -> float:
    start = time.process_time()
    model.generate(torch.zeros(streams, 1, dtype=torch.long), length, cache_kv=True)
    return streams * length / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=63)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = TransformerWrapper(
        num_tokens=65, max_seq_len=65, attn_layers=Decoder(dim=128, depth=4, heads=4, attn_dim_head=32, attn_flash=True)
    )
    model = AutoregressiveWrapper(net).eval()
    rate(model, 1, 8)
    found = {n: max(rate(model, n, arguments.length) for _ in range(arguments.repeats)) for n in (1, 64)}
    print(json.dumps({f"chars_per_s_{n}": value for n, value in found.items()}))


if __name__ == "__main__":
    main()
