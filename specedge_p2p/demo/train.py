"""Train the demo pair: a small target model of Python source and a draft model distilled from it.

``python -m specedge_p2p.demo.train --out DIR`` takes the standard library of the running Python as
the corpus and writes DIR/demo-target and DIR/demo-draft. On one large GPU it takes a few minutes;
the defaults are those of the pair in the package. More steps overfit.
"""

import argparse
import math
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
_MAX_FILE_BYTES = 400_000
_HELD_OUT_SHARE = 40
_HEAD_DIM = 32
_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class ModelSize:
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int


TARGET_SIZE = ModelSize(320, 8, 10, 2, 864)
DRAFT_SIZE = ModelSize(160, 2, 5, 1, 448)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How long and on what. `learning_rate` is the peak, after warm-up and before the cosine."""

    steps: int
    learning_rate: float
    batch_size: int = 128
    window: int = 512
    warmup_steps: int = 200
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Corpus:
    training: tuple[str, ...]
    held_out: tuple[str, ...]


Loss = Callable[[Tensor], Tensor]
"""From windows of token ids int64 [B, window + 1] to the loss."""


def read_corpus(folder: Path, max_files: int | None = None) -> Corpus:
    """All `.py` files below a folder, by path; every 40th by hash is held out."""
    training: list[str] = []
    held_out: list[str] = []
    paths = sorted(p for p in folder.rglob("*.py") if "site-packages" not in p.parts)
    for path in paths[:max_files]:
        if path.stat().st_size >= _MAX_FILE_BYTES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        name = path.relative_to(folder).as_posix()
        is_held_out = int(sha256(name.encode()).hexdigest(), 16) % _HELD_OUT_SHARE == 0
        (held_out if is_held_out else training).append(text)
    return Corpus(tuple(training), tuple(held_out))


def train_tokenizer(texts: Sequence[str], vocab_size: int = 4096) -> Tokenizer:
    """Byte-level pairs; the special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Every file between its beginning and its end, joined: int64 [tokens]."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    parts = [[bos, *encoding.ids, eos] for encoding in tokenizer.encode_batch(list(texts))]
    return torch.from_numpy(np.concatenate([np.array(part, np.int64) for part in parts]))


def build(size: ModelSize, vocab_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        head_dim=_HEAD_DIM,
        max_position_embeddings=_CONTEXT,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def next_token_loss(model: LlamaForCausalLM) -> Loss:
    """Cross-entropy in nats per token."""

    def loss(windows: Tensor) -> Tensor:
        logits = model(windows[:, :-1], use_cache=False).logits.float()
        return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    return loss


def distillation_loss(draft: LlamaForCausalLM, target: LlamaForCausalLM) -> Loss:
    """KL(target || draft) + 0.1 cross-entropy: acceptance needs the target's distribution."""

    def loss(windows: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = log_softmax(target(windows[:, :-1], use_cache=False).logits.float(), -1)
        logits = draft(windows[:, :-1], use_cache=False).logits.float()
        found = log_softmax(logits, -1).flatten(0, 1)
        divergence = kl_div(found, wanted.flatten(0, 1), reduction="batchmean", log_target=True)
        return divergence + 0.1 * cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    return loss


def train(model: LlamaForCausalLM, loss: Loss, stream: Tensor, settings: TrainSettings) -> float:
    """Train in place on random windows; the last loss."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
    )
    generator = torch.Generator().manual_seed(settings.seed)
    model.train()
    value = math.inf
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_factor(step, settings)
        windows = _random_windows(stream, settings, generator)
        with torch.autocast(settings.device.split(":")[0], dtype=torch.bfloat16):
            result = loss(windows)
        optimizer.zero_grad()
        torch.autograd.backward(result)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == settings.steps - 1:
            value = float(result.detach())
            print(f"step {step + 1} of {settings.steps}: loss {value:.3f}", flush=True)
    model.eval()
    return value


def rate_factor(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine down to 5 %."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    rest = max(1, settings.steps - settings.warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - settings.warmup_steps) / rest))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: Tensor, settings: TrainSettings) -> float:
    """Mean cross-entropy over the whole stream, window by window."""
    size = settings.window + 1
    windows = stream[: len(stream) // size * size].view(-1, size)
    losses = [
        next_token_loss(model)(part.to(settings.device)) * len(part)
        for part in torch.split(windows, settings.batch_size)
    ]
    return float(torch.stack(losses).sum()) / len(windows)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights in bfloat16, config, tokenizer and chat template, as the hub keeps them."""
    model.to(torch.bfloat16).save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=_CONTEXT,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the demo pair.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--max-files", type=int, default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=1300, help="of the target model")
    parser.add_argument("--draft-steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    def settings(steps: int, learning_rate: float) -> TrainSettings:
        return TrainSettings(
            steps=steps,
            learning_rate=learning_rate,
            batch_size=args.batch_size,
            window=args.window,
            seed=args.seed,
            device=args.device,
        )

    torch.manual_seed(args.seed)
    corpus = read_corpus(args.corpus, args.max_files)
    tokenizer = train_tokenizer(corpus.training)
    vocab_size = tokenizer.get_vocab_size()
    stream = token_stream(tokenizer, corpus.training)
    print(f"{len(corpus.training)} files, {len(stream)} tokens, {vocab_size} in the vocabulary")

    target = build(TARGET_SIZE, vocab_size).to(args.device)
    target_settings = settings(args.steps, 2.5e-3)
    train(target, next_token_loss(target), stream, target_settings)
    draft = build(DRAFT_SIZE, vocab_size).to(args.device)
    draft_settings = settings(args.draft_steps, 4e-3)
    train(draft, distillation_loss(draft, target), stream, draft_settings)

    for name, model in (("demo-target", target), ("demo-draft", draft)):
        if corpus.held_out:
            held_out = token_stream(tokenizer, corpus.held_out)
            loss = held_out_loss(model, held_out, target_settings)
            print(f"{name}: held-out loss {loss:.3f}")
        save(model, tokenizer, args.out / name)


def _random_windows(stream: Tensor, settings: TrainSettings, generator: torch.Generator) -> Tensor:
    """Int64 [batch_size, window + 1]."""
    last = len(stream) - settings.window - 1
    starts = torch.randint(0, last + 1, (settings.batch_size, 1), generator=generator)
    windows = stream[starts + torch.arange(settings.window + 1)]
    return windows.to(settings.device)


if __name__ == "__main__":
    main()
