#!/usr/bin/env bash
# Trains demo models on a machine with a GPU: the first two in about 7 minutes, of which compilation
# takes half. Needs no network.
#
#   EMOJI=out/emoji benchmarks/gpu_demo.sh     results in out/gpu
#   MODELS=unclip benchmarks/gpu_demo.sh       one of emoji64, scenes64 and unclip
#   JAX_PLATFORMS=cpu benchmarks/gpu_demo.sh --tiny    a dry run without a GPU
#
# emoji64    emoji artwork with its names, from the folder that benchmarks/emoji_data.py makes
# scenes64   the built-in scenes at 64 px: demo/base, fine-tuned at twice its resolution, where
#            textures are visible; evaluated on held-out captions, also on those with textures
# unclip     CLIP, prior and decoder of the scenes at 32 px. The CLIP is of clean images and of large
#            batches, whose captions also differ in shapes and positions alone; linear probes say
#            whether it knows them
#
# Each is exported to the folder OUT in bfloat16, below 16 MiB a file, with samples and logs.
# EMOJI_S, SCENES_S, CLIP_S, PRIOR_S and DECODER_S are the seconds of training after the first 50
# steps, PYTHON the interpreter.
set -uo pipefail # not -e: a failure of one model does not cost the others
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python}" out="${OUT:-out/gpu}" emoji="${EMOJI:-out/emoji}"
scenes_s="${SCENES_S:-100}" emoji_s="${EMOJI_S:-100}"
clip_s="${CLIP_S:-120}" prior_s="${PRIOR_S:-40}" decoder_s="${DECODER_S:-80}"
batch=256 clip_batch=2048 examples=256 steps=25 n=4 subset=full flags=(--data.loader-workers 8)
if [[ "${1:-}" == --tiny ]]; then
	batch=2 clip_batch=2 examples=2 steps=2 n=1 subset=mini flags=(--train.steps 2)
	scenes_s=600 emoji_s=600 clip_s=600 prior_s=600 decoder_s=600
fi
mkdir -p "$out"
runs="$(mktemp -d)"
trap 'rm -rf "$runs"' EXIT

# train SECONDS NAME BATCH FLAG...: SIGTERM saves a checkpoint, with exit status 0.
train() {
	local log="$out/$2.log"
	"$python" train.py --train.run-dir "$runs/$2" --train.batch-examples "$3" --train.log-every-steps 50 \
		--train.sample-every-steps 0 --train.validate-every-steps 0 "${@:4}" "${flags[@]}" >"$log" 2>&1 &
	local pid=$!
	until grep -q '^step 50:' "$log" || ! kill -0 "$pid" 2>/dev/null; do sleep 0.5; done
	timeout "$1" tail --pid="$pid" -f /dev/null # ends with the training or with its time
	kill -TERM "$pid" 2>/dev/null
	local status=0
	wait "$pid" || status=$?
	cat "$log"
	return "$status"
}

# publish NAME LICENSE
publish() {
	rm -rf "${out:?}/$1"
	"$python" -m glide_jax.export "$runs/$1" --to "$out/$1" --license "$2" &&
		cp "$runs/$1/metrics.jsonl" "$out/$1.jsonl"
}

# The first use renders the scenes. Not beside a training, whose compilation takes all cores.
JAX_PLATFORMS=cpu "$python" -c "from glide_jax.data.scenes.builder import load; load('train', '', '$subset')" \
	>"$out/scenes_data.log" 2>&1

emoji64() {
	if [[ ! -f "$emoji/captions.jsonl" ]]; then
		echo "no $emoji/captions.jsonl: benchmarks/emoji_data.py makes it"
		return 1
	fi
	train "$emoji_s" emoji64 "$batch" --config benchmarks/emoji64.py --data.source folder "$emoji" &&
		publish emoji64 "MIT; images: Fluent Emoji, Copyright (c) Microsoft Corporation, MIT" &&
		cat "$emoji/ATTRIBUTION.md" >>"$out/emoji64/MODEL_CARD.md" &&
		"$python" sample.py --checkpoint "$out/emoji64" --n "$n" --steps "$steps" --out "$out/emoji64_samples.png" \
			--prompt "red apple" --prompt "smiling face with sunglasses" --prompt rocket --prompt "blue heart"
}

scenes64() {
	train "$scenes_s" scenes64 "$batch" --config scenes_base32 --train.init-from demo/base \
		--model.unet.resolution-px 64 --model.unet.attention-px 16 --model.dtype bfloat16 \
		--data.source scenes "$subset" --optim.learning-rate 5e-4 --optim.ema-decay 0.999 &&
		publish scenes64 MIT &&
		for caption in 0 1; do # colors, shapes and relation; all attributes, with textures
			"$python" -m glide_jax.evaluation.scenes --checkpoint "$out/scenes64" --n "$examples" \
				--steps "$steps" --caption-index "$caption" --out "$out/scenes64_$caption.png" |
				tee "$out/scenes64_$caption.txt"
		done
}

unclip() {
	local scenes=(--data.source scenes "$subset" --model.dtype bfloat16)
	train "$clip_s" clip "$clip_batch" --config scenes_clip32 --model.steps 1 "${scenes[@]}" &&
		publish clip MIT &&
		"$python" -m glide_jax.evaluation.scenes.linear_probe --checkpoint "$out/clip" | tee "$out/clip_probe.txt"
	train "$prior_s" prior "$batch" --config unclip_scenes_prior --train.clip-run "$out/clip" "${scenes[@]}" &&
		publish prior MIT &&
		"$python" -m glide_jax.evaluation.prior --checkpoint "$out/prior" --clip "$out/clip" --n "$examples" |
		tee "$out/prior.txt"
	train "$decoder_s" decoder "$batch" --config unclip_scenes_decoder32 --train.clip-run "$out/clip" "${scenes[@]}" &&
		publish decoder MIT &&
		"$python" -m glide_jax.evaluation.scenes.unclip --checkpoint "$out/clip" --checkpoint "$out/prior" \
			--checkpoint "$out/decoder" --no-glide --n "$examples" --steps "$steps" --scales 3 | tee "$out/unclip.txt"
}

for model in ${MODELS:-emoji64 scenes64 unclip}; do
	"$model"
done
