# Liver masks for /input, written to /output, on a GPU or a plain CPU. docs/container.md says more.
#   bash scripts/build_image.sh             the image for a GPU, which also runs without one
#   bash scripts/build_image.sh --cpu       a third of its size, for the CPU only
#   bash scripts/build_image.sh --cuda 12.6 for older GPUs and drivers
#   docker build -t sslmedsam2 .            the same as the first, by hand

# torch brings its own CUDA libraries, so a base without any is enough. Its release (13.0) has to be
# that of the torch in constraints.txt, which is checked below. Append @sha256:<digest> to pin it.
ARG BASE_IMAGE=docker.io/nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE_IMAGE} AS python

# A base is as old as its tag: the security updates since then come along.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get upgrade --yes --no-install-recommends \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/*


# Nothing of this stage is kept but /opt/venv and /app. It needs no compiler either.
FROM python AS build

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv \
    && python3 -m venv /opt/venv

ENV PATH=/opt/venv/bin:${PATH} \
    PIP_BUILD_CONSTRAINT=/app/constraints.txt \
    PIP_CONSTRAINT=/app/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    SAM2_BUILD_CUDA=0

WORKDIR /app

# The packages come before the code, so that a change of code does not install them again. torch
# comes before sam2, which is built beside it. A site's certificate authority and its configuration
# of pip, as optional secrets, serve these steps and leave nothing behind:
#   --secret id=ca,src=<CA bundle> --secret id=pipconf,src=<pip.conf>
ARG TORCH=cuda
ARG TORCH_INDEX=""
# A file of pins that go before those of constraints.txt for the same packages of CUDA.
ARG CUDA_PINS=""
COPY constraints.txt constraints-cuda12.6.txt pyproject.toml requirements-sam2.txt ./
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem,required=false \
    --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf,required=false \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi \
    && if [ -s /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi \
    && if [ -n "${TORCH_INDEX}" ]; then export PIP_EXTRA_INDEX_URL="${TORCH_INDEX}"; fi \
    && if [ -n "${CUDA_PINS}" ]; then \
        sed -i '/^cuda-\(bindings\|toolkit\)==/d' constraints.txt \
        && cat "${CUDA_PINS}" >> constraints.txt; \
    fi \
    && sed -n 's/^\(\(torch\|setuptools\|wheel\)==[^ ;]*\).*/\1/p' constraints.txt > /tmp/first.txt \
    && pip install --requirement /tmp/first.txt \
    && unset PIP_EXTRA_INDEX_URL \
    && pip install --no-deps --no-build-isolation --require-hashes \
        --requirement requirements-sam2.txt \
    && python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; e = p["optional-dependencies"]; print(*p["dependencies"], *e["dicom"], *e["sam2"], *e["serve"], sep="\n")' \
        > /tmp/requirements.txt \
    && pip install --requirement /tmp/requirements.txt

# Is it the torch that was wanted, for the base's CUDA? Then away with what no run opens.
COPY scripts/image_trim.py /tmp/
RUN python /tmp/image_trim.py --torch "${TORCH}"

COPY LICENSE entrypoint.py ./
COPY weights/ weights/
COPY sslmedsam2/ sslmedsam2/

# Official SAM2 weights: medsam2 or sam2.1-hiera-tiny. To name one is to accept its terms, which
# then hold for the image too. A copy that `weights fetch` has left in weights/sam2/ saves the
# download; its SHA-256 has to be right in either case. What else lies there is left out.
ARG SAM2_WEIGHTS=none
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem,required=false \
    if [ -s /run/secrets/ca.pem ]; then export SSL_CERT_FILE=/run/secrets/ca.pem; fi \
    && if [ "${SAM2_WEIGHTS}" = none ]; then \
        rm -rf weights/sam2; \
    else \
        kept="$(python entrypoint.py weights fetch "${SAM2_WEIGHTS}" --accept-licence)" \
        && find weights/sam2 -type f ! -name "$(basename "${kept}")*" -delete; \
    fi \
    && python entrypoint.py weights verify \
    && rm constraints*.txt pyproject.toml requirements-sam2.txt \
    && python -m compileall -q --invalidation-mode unchecked-hash sslmedsam2 \
    && chmod -R a+rX /app


FROM python

COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app

# Everything that libraries like to write goes to the temporary folder: the root file system may be
# read-only and the user may have no home and no name. The base image asks for a recent driver and
# refuses to start without one; that check is off, because on such a host the run falls back to the
# CPU. How many threads are started follows from the container's limits (execution/host.py).
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/tmp \
    LOGNAME=sslmedsam2 \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DISABLE_REQUIRE=true \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all

# With a read-only root file system, too, there is a folder to write to.
VOLUME /tmp
WORKDIR /tmp

USER 10001:10001

HEALTHCHECK --interval=5m --timeout=2m --start-period=1m \
    CMD ["python", "/app/entrypoint.py", "doctor", "--no-inference", "--device", "cpu"]

ENTRYPOINT ["python", "/app/entrypoint.py"]

ARG BASE_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
ARG SAM2_WEIGHTS=none
LABEL org.opencontainers.image.title="SSL-MedSAM2" \
      org.opencontainers.image.description="Liver masks from multi-sequence MRI" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-NC-SA-4.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.sslmedsam2.sam2-weights="${SAM2_WEIGHTS}"
