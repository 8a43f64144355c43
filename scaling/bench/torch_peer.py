"""The PyTorch side of ``scaling bench --peer``: a plain GPT in training, and Hugging Face's ``generate``.

A program of its own, run by an interpreter that has torch: reads one JSON request a line, answers with one JSON line.
Nothing of this package is imported, so that interpreter needs no JAX.
"""

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Answers requests until its input ends."""
    import torch

    threads = int(sys.argv[1])
    torch.set_num_threads(threads)
    # XLA's products of float32 on GPUs are TensorFloat-32 ones too, unless told otherwise.
    torch.set_float32_matmul_precision("high")
    # Answers go where they are read; whatever compilers print goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work: dict = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = json.dumps(request, sort_keys=True)
        try:
            if key not in work:
                _forget(torch, work)
                work[key] = {"train": _training, "generate": _decoding}[request["what"]](torch, request)
                for _ in range(1 if request["device"] == "cpu" else 3):
                    work[key]()  # warm-up
            start, cpu = time.perf_counter(), time.process_time()
            work[key]()
            answer: dict = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
            answer["how"] = _how(request)
            answer["memory"] = torch.cuda.max_memory_allocated() if request["device"] == "cuda" else 0
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answer["version"] = f"PyTorch {torch.__version__}"
        print(json.dumps(answer), file=answers, flush=True)


def _forget(torch: Any, work: dict) -> None:
    """Lets go of earlier work, so that the next has the memory for itself."""
    work.clear()
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _how(request: dict) -> str:
    """The work in words."""
    if request["what"] == "generate":
        return f"Hugging Face generate, {request['dtype']}"
    mode = "torch.compile" if request["compile"] else "eager"
    mixed = request["dtype"] == "bfloat16"
    return f"{mode}, {'bfloat16 autocast over float32 weights' if mixed else 'float32'}, fused AdamW"


def _checked(torch: Any, device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this PyTorch sees no GPU")
    return device


def _training(torch: Any, request: dict) -> Callable[[], float]:
    """One step: forward, backward and fused AdamW of a pre-norm GPT with a tied head.

    Weights, moments and the residual stream are float32; in bfloat16 the products run under autocast, as is usual. On
    GPUs ``scaled_dot_product_attention`` takes a flash kernel.
    """
    functional, nn = torch.nn.functional, torch.nn
    module: Any = nn.Module
    torch.manual_seed(0)
    layers, width, heads = request["num_layers"], request["d_model"], request["num_heads"]
    vocab, length, batch = request["vocab_size"], request["sequence_length"], request["sequences"]
    device, mixed = _checked(torch, request["device"]), request["dtype"] == "bfloat16"

    class Layer(module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Model(module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(length, width)
            self.layers, self.norm = nn.ModuleList(Layer() for _ in range(layers)), nn.LayerNorm(width)
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, 0, 0.02)

        def forward(self, inputs, targets):
            x = self.tokens(inputs) + self.positions.weight
            for layer in self.layers:
                x = layer(x)
            logits = self.norm(x) @ self.tokens.weight.T
            return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    model = Model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = (torch.randint(0, vocab, (batch, length), device=device) for _ in range(2))
    forward = torch.compile(model) if request["compile"] else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext():
            loss = forward(inputs, targets)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return step


def _decoding(torch: Any, request: dict) -> Callable[[], None]:
    """Greedy decoding of GPT-2 small's shapes with random weights."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    torch.manual_seed(0)
    device = _checked(torch, request["device"])
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval().to(device, getattr(torch, request["dtype"]))
    prompts = torch.randint(0, 50257, (request["batch"], request["prompt"]), device=device)

    def decode():
        with torch.no_grad():
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=request["new"],
                min_new_tokens=request["new"],
                do_sample=False,
                pad_token_id=50256,
            )
        assert out.cpu().shape[1] == request["prompt"] + request["new"]

    return decode


if __name__ == "__main__":
    main()
