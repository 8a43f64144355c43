"""The PyTorch side of ``scaling bench --peer``: a plain GPT trained by eager PyTorch, and Hugging Face's ``generate``.

A program of its own, run by an interpreter that has torch: reads one JSON request a line, answers with one JSON line.
Nothing of this package is imported, so that interpreter needs no JAX.
"""

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
    work: dict = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = json.dumps(request, sort_keys=True)
        try:
            if key not in work:
                work = {key: {"train": _training, "generate": _decoding}[request["what"]](torch, request)}
                work[key]()  # warm-up
            start, cpu = time.perf_counter(), time.process_time()
            work[key]()
            answer: dict = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answer["version"] = f"PyTorch {torch.__version__}"
        print(json.dumps(answer), flush=True)


def _training(torch: Any, request: dict) -> Callable[[], float]:
    """One step: forward, backward and fused AdamW of a pre-norm GPT with a tied head, float32."""
    functional, nn = torch.nn.functional, torch.nn
    module: Any = nn.Module
    torch.manual_seed(0)
    layers, width, heads = request["num_layers"], request["d_model"], request["num_heads"]
    vocab, length, batch = request["vocab_size"], request["sequence_length"], request["sequences"]

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

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = (torch.randint(0, vocab, (batch, length)) for _ in range(2))

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = model(inputs, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _decoding(torch: Any, request: dict) -> Callable[[], None]:
    """Greedy decoding of GPT-2 small's shapes with random weights."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    prompts = torch.randint(0, 50257, (request["batch"], request["prompt"]))

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
        assert out.shape[1] == request["prompt"] + request["new"]

    return decode


if __name__ == "__main__":
    main()
