#!/usr/bin/env bash
# 64 settings on four data sets, each with its label-free score and its metrics on the test set.
#   experiments/label_free/run.sh MTD SCREW RESNET18.safetensors OUT [SETTING…]
# MTD holds MT_Free and the others; SCREW holds the folder screw in the layout of MVTec AD.
# Started again, it computes only what has not finished. SETS="texture object" runs only these,
# and TRAINER=gpu uses a GPU.
set -uo pipefail
mtd=$1 screw=$2 resnet18=$3 out=$4
shift 4
export PATCHCORE_CACHE=${PATCHCORE_CACHE:-$out/cache} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
status=0
for name in ${SETS:-texture object screw mtd}; do
    case $name in
        mtd) data=(data=mtd data.root="$mtd" data.test_share=0.4 image.size=128) ;;
        screw) data=(data=mvtec data.root="$screw" data.category=screw data.shots=80 image.size=192) ;;
        *) data=(data=generated data.category="$name" image.size=128) ;;
    esac
    for network in "backbone=embedded" "backbone=resnet18 backbone.weights=$resnet18"; do
        # shellcheck disable=SC2086
        patchcore train --multirun hydra.sweep.dir="$out/$name/${network:9:8}" \
            "objectives=[label_free]" "${data[@]}" $network coreset.ratio=0.01 \
            layers=2,2+3 patch.size=1,3 method.whitening=null,0.99 method.radius=null,2 \
            scoring.top_share=0,0.01 trainer="${TRAINER:-cpu}" trainer.enable_progress_bar=false \
            logger=none figures=false "$@" || status=1
    done
done
exit "$status"
