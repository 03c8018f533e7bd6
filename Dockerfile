# The images, targets service (CPU), service-gpu and training: see docs/deploy.md.
#
# Each layer depends on as little as it can: packages on a list of names and the pinned versions,
# source on nothing before it. So a change of source installs nothing anew.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
RUN groupadd --gid 10001 dinserve \
 && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin dinserve \
 # A volume that is mounted here for the first time takes these owners over.
 && install --directory --owner 10001 --group 10001 /repository /logs
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    DINSERVE_REPOSITORY=/repository
WORKDIR /app

FROM base AS lists
COPY pyproject.toml deploy/requirements.py ./
RUN mkdir /lists \
 && python requirements.py service cpu traces objects > /lists/service.txt \
 && python requirements.py service gpu cuda traces objects > /lists/service-gpu.txt \
 && python requirements.py training load service cpu objects > /lists/training.txt

# Wheels only: there is no compiler here. pip stays outside of what it installs.
FROM base AS installer
ARG PIP_EXTRA_INDEX_URL
ENV PIP_ONLY_BINARY=:all: PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
COPY constraints.txt /lists/

FROM installer AS service-packages
COPY --from=lists /lists/service.txt /lists/
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    pip --python /opt/venv/bin/python install -c /lists/constraints.txt -r /lists/service.txt

FROM installer AS service-gpu-packages
COPY --from=lists /lists/service-gpu.txt /lists/
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    pip --python /opt/venv/bin/python install -c /lists/constraints.txt -r /lists/service-gpu.txt

FROM installer AS training-packages
COPY --from=lists /lists/training.txt /lists/
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    pip --python /opt/venv/bin/python install -c /lists/constraints.txt -r /lists/training.txt

# Compiled here, since nothing can be written where it runs; readable whatever the checkout's modes.
FROM base AS service-source
COPY model/__init__.py model/
COPY model/contract model/contract
COPY store store
COPY mirror mirror
COPY terminal terminal
COPY service service
COPY deploy/healthy.py deploy/
RUN python -m compileall -q --invalidation-mode unchecked-hash . && chmod -R a+rX .

FROM service-source AS training-source
COPY model model
COPY training training
COPY deploy/job.sh deploy/first-model.sh deploy/retrain-nightly.sh deploy/
RUN python -m compileall -q --invalidation-mode unchecked-hash . && chmod -R a+rX .

# What all targets say of themselves. No RUN may follow: it would run anew with each revision.
FROM base AS image
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.licenses=Apache-2.0
USER 10001:10001

FROM image AS serving
ENV DINSERVE_HOST=0.0.0.0 DINSERVE_PORT=8000
EXPOSE 8000
STOPSIGNAL SIGTERM
# It may take a first model to be ready, so failures don't count for an hour, or until it is.
HEALTHCHECK --interval=5s --timeout=4s --start-period=1h --retries=3 \
    CMD ["python", "-S", "/app/deploy/healthy.py", "8000", "/readyz"]
CMD ["python", "-m", "service", "serve"]

FROM image AS training
LABEL org.opencontainers.image.title="dinserve training"
ENV MPLCONFIGDIR=/tmp
COPY --from=training-packages /opt/venv /opt/venv
COPY --from=training-source /app /app
CMD ["python", "-m", "training", "--help"]

# CUDA comes with the packages; the driver is the host's.
FROM serving AS service-gpu
LABEL org.opencontainers.image.title="dinserve service, CUDA"
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_CACHE_PATH=/tmp/cuda DINSERVE_PROVIDER=cuda
COPY --from=service-gpu-packages /opt/venv /opt/venv
COPY --from=service-source /app /app

# The last one is what a build without a target makes.
FROM serving AS service
LABEL org.opencontainers.image.title="dinserve service"
COPY --from=service-packages /opt/venv /opt/venv
COPY --from=service-source /app /app
