"""Chat templates that let a model think, written here in the ways of the families they are named after."""

from __future__ import annotations

_CHATML = (
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' and '</think>' in m.content %}"
    "{{- '<|im_start|>assistant\n' + m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}"
)
QWEN3 = (
    _CHATML + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{%- endif %}"
)
SMOLLM3 = (
    "{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}"
    "{%- set reasoning_mode = '/think' if enable_thinking else '/no_think' %}"
    "{%- set said = messages[0].content if messages[0].role == 'system' else '' %}"
    "{%- if '/no_think' in said %}{%- set reasoning_mode = '/no_think' %}{%- endif %}"
    "{{- '<|im_start|>system\nReasoning Mode: ' + reasoning_mode + '\n' + said.replace('/no_think', '') }}"
    "{{- '<|im_end|>\n' }}{%- for m in messages if m.role != 'system' %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if reasoning_mode == '/no_think' %}{{- '<think>\n\n</think>\n' }}{%- endif %}{%- endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{%- elif m.role == 'assistant' %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}"
    "{%- else %}{{ m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{%- endif %}"
)
DEEPSEEK_V31 = (
    "{%- if not thinking is defined %}{%- set thinking = false %}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{%- elif m.role == 'assistant' %}{{ '<|Assistant|></think>' + m.content + '<|end|>' }}"
    "{%- else %}{{ m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|Assistant|>' }}"
    "{%- if thinking %}{{ '<think>' }}{%- else %}{{ '</think>' }}{%- endif %}{%- endif %}"
)
GLM = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|user|>\n' + m.content }}"
    "{{- '/nothink' if enable_thinking is defined and not enable_thinking else '' }}"
    "{%- elif m.role == 'assistant' %}{{- '<|assistant|>\n<think></think>\n' + m.content }}"
    "{%- else %}{{- '<|system|>\n' + m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}"
    "{{- '\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{%- endif %}"
)
GRANITE = (
    '{%- if thinking %}{{- \'<|start|>system\nBegin with "Here is my thought process:", and the answer with '
    '"Here is my response:".<|end|>\n\' }}{%- endif %}{%- for m in messages %}'
    "{{- '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant\n' }}{%- endif %}"
)
NEMOTRON = (
    "{%- set ns = namespace(enable_thinking=true) %}{%- for m in messages %}"
    "{%- if '/no_think' in m.content %}{%- set ns.enable_thinking = false %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{{- '<s>' + m.role + '\n' }}"
    "{{- m.content.replace('/no_think', '').replace('/think', '') + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<s>assistant\n' }}"
    "{{- '<think>\n\n' if ns.enable_thinking else '<think></think>' }}{%- endif %}"
)
SEED = (
    "{%- if not thinking_budget is defined %}{%- set thinking_budget = -1 %}{%- endif %}"
    "{%- for m in messages %}{{- '<seed:bos>' + m.role + '\n' + m.content + '<seed:eos>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<seed:bos>assistant\n' }}{%- if thinking_budget == 0 %}"
    "{{- '<seed:think><seed:cot_budget_reflect>\n' }}{%- endif %}{%- endif %}"
    "{# <seed:think> ... </seed:think> #}{%- set ends = '</seed:think>' %}"
)
HARMONY = (
    "{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}"
    "{%- for m in messages %}{%- if m.role == 'assistant' and m.thinking %}"
    "{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}"
    "{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
COMMAND = (
    "{%- for m in messages %}{{- '<|' + m.role + '|>' + m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|chatbot|>' }}{%- if reasoning is defined and not reasoning %}"
    "{{- '<|START_THINKING|><|END_THINKING|>' }}{%- endif %}{%- endif %}"
)
HIDING = (  # an instruct model's, that only takes thoughts of others out of earlier turns
    _CHATML + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
NEGATED = (
    "{%- for m in messages %}{{- m.role + ': ' + m.content + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant: ' }}"
    "{{- '' if disable_reasoning else '<reasoning>\n' }}{%- endif %}"
)
PLAIN = (
    "{%- for m in messages %}{{- '<|' + m.role + '|>' + m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
