# Liver masks for /input, written to /output, on a GPU or a plain CPU:
#   docker build -t sslmedsam2 .
#   docker run --rm --gpus all -v DATA:/input:ro -v OUT:/output sslmedsam2
# Behind a proxy with its own certificate authority or package index, pass the optional secrets:
#   --secret id=ca,src=<CA bundle> --secret id=pipconf,src=<pip.conf>
# They serve the build only and leave nothing in the image.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE_IMAGE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv

ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

WORKDIR /app

# The packages come before the code, so that a change of code does not install them again. torch
# comes first, because sam2 is built beside it; that build compiles nothing.
COPY constraints.txt pyproject.toml requirements-sam2.txt ./
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem,required=false \
    --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf,required=false \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi \
    && if [ -s /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi \
    && export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
        PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 SAM2_BUILD_CUDA=0 \
    && pip install "$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)" \
    && pip install --no-deps --no-build-isolation --require-hashes \
        --requirement requirements-sam2.txt \
    && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > /tmp/requirements.txt \
    && pip install --requirement /tmp/requirements.txt \
    && rm -rf /tmp/*

COPY LICENSE entrypoint.py ./
# With what `weights fetch` has put into weights/sam2/, whose terms then hold for the image too.
COPY weights/ weights/
COPY sslmedsam2/ sslmedsam2/

# Everything that libraries like to write goes to the temporary folder: the root file system may be
# read-only and the user may have no home. The base image asks for a recent driver and refuses to
# start without one; that check is off, because on such a host the run falls back to the CPU.
ENV HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton \
    XDG_CACHE_HOME=/tmp/cache \
    NVIDIA_DISABLE_REQUIRE=true \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all

USER 10001:10001

ENTRYPOINT ["python", "/app/entrypoint.py"]
