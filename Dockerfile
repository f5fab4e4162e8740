# docker build -t crl . && docker run --rm --gpus all -v "$PWD/runs:/crl/runs" -e WANDB_API_KEY crl ant --log_wandb
# The user inside has the number 1000; where yours has another, make the runs folder writable for it.
# JAX brings its own CUDA libraries, so the smallest image that knows the driver is enough. Its Python is 3.12.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# Ubuntu removes old versions from its archive, so none is named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libosmesa6 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 1000 -g 1000 /crl /crl/runs
USER 1000:1000
WORKDIR /crl

# A GPU is not visible while building, so the build of JAX is named. The driver's graphics part renders off screen.
ENV JAX_EXTRA=cuda13 \
    MUJOCO_GL=egl \
    NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility \
    PIP_NO_CACHE_DIR=1
COPY --chown=1000:1000 requirements.lock ./
COPY --chown=1000:1000 scripts/setup.sh scripts/
RUN scripts/setup.sh
COPY --chown=1000:1000 . .

ENTRYPOINT ["/crl/scripts/train.sh"]
