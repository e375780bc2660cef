#!/usr/bin/env bash
# All studies of conf/experiment/mtd with two networks, side by side on the GPUs of one machine.
#   experiments/mtd_ablations/run.sh MTD RESNET18.safetensors DENSENET201.safetensors OUT [SETTING…]
# Started again, it computes only what has not finished. JOBS processes a study and network: one
# unless there are several GPUs; STUDIES="size stride" runs only these besides the ensemble.
set -uo pipefail
root=$1 resnet18=$2 densenet201=$3 out=$4
shift 4
export PATCHCORE_CACHE=${PATCHCORE_CACHE:-$out/cache} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
shared=(data.root="$root" logger=none figures=false trainer.enable_progress_bar=false
    cache.limit_gib=45 hydra/launcher=processes
    hydra.launcher.n_jobs="${JOBS:-$((gpus > 1 ? 2 : 1))}" "$@")
network=0 status=0 children=()

start() { # FOLDER SETTING…: a multirun in the background
    mkdir -p "$out/$1"
    CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-$((network % (gpus > 0 ? gpus : 1)))} \
        patchcore train --multirun hydra.sweep.dir="$out/$1" "${@:2}" "${shared[@]}" \
        >"$out/$1/log.txt" 2>&1 &
    children+=("$!")
}

settle() { # waits for all
    for child in "${children[@]}"; do wait "$child" || status=1; done
    children=()
}

for study in repeats all; do # repeats first, alone: it fills the cache for the others
    network=0
    for name in resnet18 densenet201; do
        chosen=(backbone="$name" backbone.weights="${!name}")
        if [ "$study" = repeats ]; then
            start "$name/repeats" experiment=mtd/repeats "${chosen[@]}"
        else
            for one in ${STUDIES:-memory learned method size layers stride shots}; do
                more=()
                # Maps that three runs share and no other study: not worth 27 GB.
                [ "$one" = layers ] && more=(cache.enabled=false)
                start "$name/$one" experiment="mtd/$one" "${chosen[@]}" "${more[@]}"
            done
        fi
        network=$((network + 1))
    done
    [ "$study" = repeats ] && settle
done
member() { echo "{backbone:{name:$1,weights:$2}}"; }
start ensemble/repeats experiment=mtd/repeats \
    "ensemble.members=[$(member resnet18 "$resnet18"),$(member densenet201 "$densenet201")]"
settle
[ "$status" = 0 ] || grep -h -A3 "^error" "$out"/*/*/log.txt
exit "$status"
