"""Train the base models of the tiny recipe from scratch: a language model and a vision tower of a few megabytes.

Why: the recipe runs every stage of the pipeline in about a minute on two cores, and a test can check that its result
means something. Random base models would learn nothing; published ones are a hundred times larger.

What: ``language/`` is a Llama that has read generated ChatML about numbers and everyday things. It answers questions on
text, and names what stands before a question (so that a projector can learn to put words there); when that is no word,
or when more is asked of it than its name, it says "unknown". ``vision/`` is a CLIP vision transformer trained with a
supervised contrastive loss (Khosla et al. 2020) on the recipe's *training* pictures alone: it tells digits apart, but
has no names for them. What is left to learn is what the recipe trains: the projector, and the answers to two questions.

Run (about two minutes on one core; equal runs on one machine write equal bytes):

    PYTHONPATH=workflow python data/tiny/make_models.py --digits digits.csv.gz --output data/tiny
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlmflow.cli import run
from vlmflow.data.records import Turn
from vlmflow.data.split import assign
from vlmflow.models.template import chat_template, encode
from vlmflow.training.objective import Objective
from vlmflow.training.samples import Batch, collate

SEED = 0
UNKNOWN, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
KINDS = {
    kind: members.split()
    for kind, members in (
        ("digit", "zero one two three four five six seven eight nine"),
        ("number", "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"),
        ("day", "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
        ("month", "January February March April May June July August September October November December"),
        ("colour", "red blue green yellow black white brown grey pink purple"),
        ("animal", "cat dog horse cow bird fish sheep pig duck mouse lion bear frog bee"),
        ("fruit", "apple banana cherry grape lemon melon peach pear plum"),
        ("shape", "circle square triangle star heart cross"),
        ("tool", "hammer saw knife spoon fork pen brush needle"),
    )
}
NUMBERS = KINDS["digit"] + KINDS["number"]
WORDS = [word for members in KINDS.values() for word in members]
OPPOSITES = (
    "hot cold,big small,fast slow,old young,light dark,high low,wet dry,full empty,early late,open closed,rich poor,"
    "happy sad,hard soft,long short,near far,up down,left right,yes no,even odd"
)
COLOURS = "grass green,snow white,blood red,coal black,milk white,gold yellow,chocolate brown,the sky blue"
SOUNDS = "cat meow,dog woof,cow moo,sheep baa,duck quack,pig oink,bee buzz,mouse squeak,lion roar"


def make_models(digits: Path, output: Path) -> None:
    """Write ``language/`` and ``vision/`` below ``output``; ``digits`` is scikit-learn's digits.csv.gz."""
    torch.set_num_threads(1)  # the order of sums, and so the last bits of the result, depends on it
    torch.use_deterministic_algorithms(True)
    train_language(output / "language")
    train_vision(digits, output / "vision")


def pairs(text: str) -> list[tuple[str, str]]:
    """``"a b,the c d"`` gives ``[("a", "b"), ("the c", "d")]``."""
    return [(first, second) for first, _, second in (item.rpartition(" ") for item in text.split(","))]


@functools.cache
def properties(kind: str) -> list[tuple[str, str, str]]:
    """What is known of the words of a kind: (word, question with a gap for it, answer)."""
    words = KINDS[kind]
    found = [(word, "What kind of thing is {}?", kind) for word in words]
    if kind == "animal":
        found += [(animal, "What does {} say?", sound) for animal, sound in pairs(SOUNDS)]
    if kind in ("day", "month"):
        for first, second in itertools.pairwise(words + words[:1]):
            found += [(first, f"Which {kind} follows {{}}?", second), (second, f"Which {kind} is before {{}}?", first)]
    if kind in ("digit", "number"):
        for word, (value, other) in itertools.product(words, enumerate(NUMBERS)):
            found.append((word, f"Is {{}} greater than {other}?", "yes" if NUMBERS.index(word) > value else "no"))
            found.append((word, "Is {} even or odd?", "odd" if NUMBERS.index(word) % 2 else "even"))
    return found


@functools.cache
def facts() -> list[tuple[str, str]]:
    """Every question on text alone, with its answer."""
    found = [(f"What is the opposite of {a}?", b) for x, y in pairs(OPPOSITES) for a, b in ((x, y), (y, x))]
    found += [(f"What colour is {thing}?", colour) for thing, colour in pairs(COLOURS)]
    for a, b in itertools.product(range(10), repeat=2):
        found.append((f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", NUMBERS[a + b]))
        if a >= b:
            found.append((f"What is {NUMBERS[a]} minus {NUMBERS[b]}?", NUMBERS[a - b]))
    return found + [(question.format(word), answer) for kind in KINDS for word, question, answer in properties(kind)]


def shown(draw: random.Random) -> tuple[str, str]:
    """A question on what stands before it, as a picture's features will: a word, repeated, or a medley of several.

    Of a digit shown so nothing but its name is told.
    """
    kind, count, choice = draw.choice(list(KINDS)), draw.choice((1, 2, 4, 9, 9)), draw.random()
    word, question, answer = draw.choice(properties(kind))
    question = question.format(f"this {kind}")
    if choice < 0.5:
        question, answer = draw.choice((f"What {kind} is this?", "What is this?")), word
    elif choice < 0.65 or kind == "digit":
        question, answer = "Is this {} {} or {}?".format(kind, *draw.choice(pairs(OPPOSITES)[:-2])), "unknown"
    before = [word] * count
    if draw.random() < 0.15:
        before, answer = draw.choices([*WORDS, *"bcdfghjklmnpqrstvwxyz.,:;-+*/()"], k=max(2, count)), "unknown"
    return f"{' '.join(before)}\n{question}", answer


def conversations(seed: int) -> Iterator[tuple[str, str]]:
    """An endless stream of (question, answer)."""
    draw = random.Random(seed)
    while True:
        choice = draw.random()
        if choice < 0.9:
            yield shown(draw) if choice < 0.45 else draw.choice(facts())
        else:
            phrase = " ".join(draw.choices(WORDS, k=draw.randint(1, 4)))
            yield f"Say: {phrase}", phrase


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on the conversations. ``<image>`` is no token of it: the pipeline adds that one."""
    turns = [*itertools.islice(conversations(SEED + 1), 20_000), *facts()]
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=767,  # with `<image>` 12 x 64
        special_tokens=[UNKNOWN, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"user\n{question}\nassistant\n{answer}\n" for question, answer in turns), trainer)
    names = {"unk_token": UNKNOWN, "bos_token": START, "eos_token": END, "pad_token": END}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, model_max_length=256, chat_template=chat_template("chatml")
    )


def train_language(output: Path) -> None:
    """Train on the answers of generated conversations, rendered and masked as the pipeline does it."""
    tokenizer = train_tokenizer()
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=-(-(len(tokenizer) + 1) // 64) * 64,  # one row more than tokens, for `<image>`
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )

    @functools.cache
    def sample(question: str, answer: str) -> Batch:
        encoded = encode(tokenizer, [Turn("user", question), Turn("assistant", answer)], [])
        return {"input_ids": torch.tensor(encoded.input_ids), "labels": torch.tensor(encoded.labels)}

    def loss() -> torch.Tensor:
        batch = collate([sample(*turns) for turns in itertools.islice(stream, 64)], tokenizer.pad_token_id)
        return objective(**batch) / (batch["labels"] >= 0).sum()

    stream, objective = conversations(SEED), Objective(model)
    fit("language", objective, loss, steps=900, rate=3e-3)
    model.generation_config.update(do_sample=False, max_new_tokens=16)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def training_pictures(digits: Path) -> tuple[list[Image.Image], torch.Tensor]:
    """Pictures (RGB, 8 x 8, dark on white) and labels of the recipe's training split, and no others."""
    rows = np.loadtxt(digits, delimiter=",", dtype=int)
    grey = (255 - np.round(rows[:, :-1] * 255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    pictures = [Image.fromarray(pixels).convert("RGB") for pixels in grey]
    hashes = [[hashlib.sha256(b"8x8:" + picture.tobytes()).hexdigest()] for picture in pictures]
    chosen = [i for i, part in enumerate(assign(hashes, {"validation": 0.1, "test": 0.1}, 0)) if part == "train"]
    return [pictures[i] for i in chosen], torch.tensor(rows[chosen, -1])


def augment(pictures: torch.Tensor) -> torch.Tensor:
    """Random affine maps near the identity, and grey noise; (n, 3, h, w) in and out."""
    matrix = torch.eye(2, 3) + torch.randn(len(pictures), 2, 3) * torch.tensor([0.12, 0.12, 0.1])
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return moved + 0.15 * torch.randn(len(pictures), 1, *pictures.shape[2:])


def contrastive_loss(features: torch.Tensor, labels: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Supervised contrastive loss of (n, width) features: those of one label shall be near each other."""
    unit = functional.normalize(features, dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool)
    similar = (unit @ unit.T / temperature).masked_fill(itself, -1e9).log_softmax(-1)
    same = (labels[:, None] == labels) & ~itself
    return -((similar * same).sum(-1) / same.sum(-1).clamp(min=1)).mean()


def train_vision(digits: Path, output: Path) -> None:
    """Train what LLaVA reads (patches, last layer but one) and the pooled output (class token, last layer)."""
    pictures, labels = training_pictures(digits)
    side = 24  # 3 x 3 patches of 8 x 8 pixels
    processor = CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)
    values = processor(pictures, return_tensors="pt")["pixel_values"]
    torch.manual_seed(SEED)
    width = {"hidden_size": 128, "intermediate_size": 256, "projection_dim": 128}
    model = CLIPVisionModel(
        CLIPVisionConfig(**width, num_hidden_layers=4, num_attention_heads=4, image_size=side, patch_size=8)
    )
    heads = torch.nn.ModuleList(torch.nn.Linear(128, 64) for _ in range(2))  # thrown away after training

    def loss() -> torch.Tensor:
        chosen = torch.randint(len(values), (128,))
        seen = model(pixel_values=augment(values[chosen]), output_hidden_states=True)
        patches, pooled = seen.hidden_states[-2][:, 1:].mean(1), seen.pooler_output
        return contrastive_loss(heads[0](patches), labels[chosen]) + contrastive_loss(heads[1](pooled), labels[chosen])

    fit("vision", torch.nn.ModuleList([model, heads]), loss, steps=500, rate=2e-3)
    model.save_pretrained(output)
    processor.save_pretrained(output)


def fit(name: str, module: torch.nn.Module, loss: Callable[[], torch.Tensor], steps: int, rate: float) -> None:
    """AdamW on the parameters of ``module``; the rate rises to ``rate`` over 5% of the steps, then falls to 0."""
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
    started = time.monotonic()
    for step in range(1, steps + 1):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"{name} {step}/{steps}: loss {value.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    run(make_models)
