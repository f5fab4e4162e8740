# docker build -t crl . && docker run --rm --gpus all -v "$PWD/runs:/crl/runs" crl ant
# JAX brings its own CUDA libraries, so the smallest image that knows the driver is enough. Its Python is 3.12.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libosmesa6 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o ubuntu -g ubuntu /crl /crl/runs
USER ubuntu
WORKDIR /crl

# A GPU is not visible while building, so the build of JAX is named. The driver's graphics part renders off screen.
ENV JAX_EXTRA=cuda13 \
    MUJOCO_GL=egl \
    NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility \
    PIP_NO_CACHE_DIR=1
COPY --chown=ubuntu:ubuntu requirements.lock ./
COPY --chown=ubuntu:ubuntu scripts/setup.sh scripts/
RUN scripts/setup.sh
COPY --chown=ubuntu:ubuntu . .

ENTRYPOINT ["/crl/scripts/train.sh"]
