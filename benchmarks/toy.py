"""A model of a few thousand weights and two tasks for it: for benchmarks of everything but the model."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = "amber birch cloud delta ember frost grove haze iron jade kelp lime moss north ocean pearl".split()
TASKS = ("toy_choose", "toy_write")
_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{ question }}}}:"
{answer}
metadata: {{domain: toy, dataset: {name}}}
"""
_CHOOSE = 'doc_to_choice: ["{{ first }}", "{{ second }}"]\ndoc_to_target: label'
_WRITE = """\
doc_to_target: "{{ first }}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""


def make_model(folder: Path, hidden: int = 16) -> Path:
    """A random Llama and a tokenizer of single bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tasks(folder: Path, items: int, *, seed: int = 0) -> Path:
    """``toy_choose`` (likelihood of two choices) and ``toy_write`` (four greedy tokens), ``items`` in all;
    no two questions are alike."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        kind = ("multiple_choice", _CHOOSE) if name == "toy_choose" else ("generate_until", _WRITE)
        (folder / f"{name}.yaml").write_text(_TASK.format(name=name, output_type=kind[0], answer=kind[1]))
        with (folder / f"{name}.jsonl").open("w") as stream:
            for number in range(items // 2):
                first, second, third = draw.sample(WORDS, 3)
                row = {"question": f"{number} {third}", "first": first, "second": second, "label": number % 2}
                stream.write(json.dumps(row) + "\n")
    return folder
