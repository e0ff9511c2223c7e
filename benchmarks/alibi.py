"""Time and memory of each kind of ALiBi attention, against the length.

    python benchmarks/alibi.py attention                       # one layer's attention, forward and backward
    python benchmarks/alibi.py encode --size small             # a published size, inference, one text
    python benchmarks/alibi.py encode --encoder out/pretraining/alibi_bert --text out/pretraining/held-out.parquet --backward
                                                               # a trained one, on a text of column "text"
    python benchmarks/alibi.py encode --lengths 512 --batch 8 --shortest 50 --backward   # texts of 50 to 512 tokens, padded

Every figure is read in a process of its own: the time is the fastest of the rounds after one to warm up, the memory is the most
that the process held beyond what it held before the first call (on a GPU: that the allocator handed out). "naive" is what
a direct reading of the formula does: a bias of batch x heads x length x length, with the mask in it.

Blockwise attention leaves out keys that weigh nothing, and how many those are depends on the scores: with --strength 1
queries and keys are standard normal (scores up to about 15 before ALiBi); larger values leave out less, 100 nothing at all.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

KINDS = ("blockwise", "sdpa", "eager", "naive", "flex_attention", "no bias")
HEADS, WIDTH = 8, 64


def attention(options: argparse.Namespace) -> Callable[[], None]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from st_distill.modules.alibi_attention import PLANS, alibi_slopes, dense_bias

    torch.manual_seed(0)
    device, dtype = options.device, getattr(torch, options.dtype)
    shape = (options.batch, HEADS, options.length, WIDTH)
    query, key, value = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    query *= options.strength
    states = torch.zeros(options.batch, options.length, HEADS * WIDTH, device=device, dtype=dtype)
    training = not (options.forward or (options.kind == "flex_attention" and device == "cpu"))
    leaves = [part.requires_grad_(training) for part in (query, key, value)]
    gradient = torch.randn_like(query) if training else None

    def call() -> torch.Tensor:
        if options.kind == "no bias":
            return scaled_dot_product_attention(query, key, value)
        if options.kind == "naive":
            bias = dense_bias(torch.tensor(alibi_slopes(HEADS), device=device, dtype=dtype), options.length)
            mask = torch.zeros(options.batch, 1, 1, options.length, device=device, dtype=dtype)
            scores = query @ key.mT * WIDTH**-0.5 + (bias + mask)
            return scores.softmax(-1) @ value
        plan = PLANS[options.kind](alibi_slopes(HEADS), None, states)
        # Blockwise attention takes the texts of a batch one after the other.
        packed = [
            plan.pack(part.transpose(1, 2).flatten(2)).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
            for part in (query, key, value)
        ]
        return plan.attend(*packed, 0.0)[0]

    def run() -> None:
        found = call()
        if training:
            torch.autograd.grad(found, leaves, gradient.view_as(found))

    return run


def encode(options: argparse.Namespace) -> Callable[[], None]:
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoTokenizer

    from st_distill.modules import AlibiBertConfig, AlibiBertModel
    from st_distill.modules.alibi_attention import PLANS, EagerPlan

    if options.kind == "no bias":
        raise SystemExit("the encoder has no kind without a bias")
    torch.manual_seed(0)
    if options.kind == "naive":

        class NaivePlan(EagerPlan):
            def __init__(self, *arguments) -> None:
                super().__init__(*arguments)
                self.bias = self.bias.repeat(self.batch, 1, 1, 1)

        PLANS["naive"] = NaivePlan
    if options.encoder:
        model = AlibiBertModel.from_pretrained(options.encoder, attn_implementation=options.kind)
        text = pq.read_table(options.text, columns=["text"])["text"][0].as_py()
        given = AutoTokenizer.from_pretrained(options.encoder)(
            text, truncation=True, max_length=options.length, return_tensors="pt"
        )
        ids = given["input_ids"].repeat(options.batch, 1).to(options.device)
        if ids.shape[1] < options.length:
            raise SystemExit(f"the text has {ids.shape[1]} tokens")
    else:
        config = AlibiBertConfig.preset(options.size)
        model = AlibiBertModel._from_config(config, attn_implementation=options.kind)
        ids = torch.randint(1000, config.vocab_size, (options.batch, options.length), device=options.device)
    mask = None
    if options.shortest is not None:
        lengths = torch.linspace(options.shortest, options.length, options.batch, device=options.device)
        mask = (torch.arange(options.length, device=options.device) < lengths[:, None]).long()
    model = model.eval().to(options.device, getattr(torch, options.dtype))

    def run() -> None:
        if not options.backward:
            with torch.no_grad():
                model(ids, attention_mask=mask)
            return
        model.zero_grad(set_to_none=True)
        states = model(ids, attention_mask=mask)[0]
        states.backward(torch.randn_like(states))

    return run


def measure(options: argparse.Namespace) -> None:
    """Print seconds and megabytes of one kind at one length."""
    import torch

    run = {"attention": attention, "encode": encode}[options.what](options)
    on_gpu = options.device != "cpu"
    before = torch.cuda.memory_allocated() if on_gpu else held()
    clock = time.process_time if options.processor else time.perf_counter
    times = []
    for _ in range(options.rounds + 1):
        start = clock()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(clock() - start)
    after = torch.cuda.max_memory_allocated() if on_gpu else held()
    print(min(times[1:]), (after - before) / 1e6)


def held() -> int:
    """The most bytes this process has held so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["attention", "encode"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["blockwise", "sdpa", "eager", "naive"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", choices=["small", "base", "large"], default="small", help="for encode")
    parser.add_argument("--encoder", help="for encode: folder of a trained ALiBi encoder, in place of a size")
    parser.add_argument("--text", help="with --encoder: parquet whose first text it is given")
    parser.add_argument(
        "--shortest", type=int, help="for encode: the texts of a batch have from so many tokens up to the length"
    )
    parser.add_argument("--backward", action="store_true", help="for encode: with the backward pass")
    parser.add_argument("--strength", type=float, default=1.0, help="for attention: what the queries are multiplied by")
    parser.add_argument("--forward", action="store_true", help="for attention: without the backward pass")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--processor", action="store_true", help="seconds of the processor, where other programs run too"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if bool(options.encoder) != bool(options.text):
        parser.error("--encoder and --text go together")
    if options.kind:
        measure(options)
        return
    print("| length | " + " | ".join(f"{kind}, s | MB" for kind in options.kinds) + " |")
    print("|---|" + "---|---|" * len(options.kinds))
    for length in options.lengths:
        cells = []
        for kind in options.kinds:
            command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind, "--length", str(length)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["killed, for want of memory"])[-1]
                print(f"{kind} at {length}: {reason}", file=sys.stderr)
                cells += ["-", "-"]
                continue
            seconds, megabytes = map(float, done.stdout.split())
            cells += [f"{seconds:.3f}", f"{megabytes:,.0f}"]
        print(f"| {length:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
