#!/usr/bin/env bash
# Installs a wheel or an sdist in an empty environment and runs the quickstart there, made tiny: docs/check_dist.sh FILE
set -euo pipefail
file=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0  # as in the Makefile, and for its reason
"$work/env/bin/pip" install --quiet "$file[train]"
cd "$work"  # away from the sources
version=$(env/bin/genrec --version)
echo "$version from $(basename "$file")"
case "$(basename "$file")" in
    *"${version#genrec }"*) ;;
    *) echo "check_dist: $(basename "$file") calls itself $version" >&2; exit 1 ;;
esac
env/bin/genrec run quickstart run_dir=run model.layers=1 train.max_steps=2 sasrec.epochs=1 \
    evaluate.resamples=10 evaluate.test_resamples=10
env/bin/genrec recommend run --history 50 181 -k 3
