# syntax=docker/dockerfile:1
# The worker's image, in two targets of one file: cpu (the default) and gpu, which adds the CUDA libraries.
#
#     docker build -t ebbtide .                      --target gpu for the other one
#     docker run --read-only --tmpfs /tmp -v ./models:/models:ro -v ./secrets:/run/secrets:ro -p 8080:8080 \
#         -e EBBTIDE_KAFKA_URL=… -e EBBTIDE_REDIS_URL=… -e EBBTIDE_REDIS__PASSWORD_FILE=/run/secrets/redis \
#         -e EBBTIDE_MODEL=/models/churn -e EBBTIDE_HTTP__TOKEN_FILE=/run/secrets/http-token ebbtide
#
# Nothing in it is written at run time but /tmp, so a read-only root works; the model is mounted, never baked. It listens
# on all interfaces of its container, so /v1 needs the token: without one it answers 403. ops/image/build.sh builds it
# without Docker. A tag can be another image tomorrow, so a release names its base's digest, too, which only a registry
# can tell:     docker build --build-arg BASE_DIGEST=@sha256:… .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG BASE_DIGEST=

FROM ${PYTHON_IMAGE}${BASE_DIGEST} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/ebbtide
WORKDIR /src

# The dependencies are a layer of their own: a change of our code alone does not fetch TensorFlow again.
FROM base AS needs-cpu
COPY ops/image/requirements-cpu.txt ops/image/slim.py ./
RUN /opt/ebbtide/bin/pip install --require-hashes --only-binary :all: -r requirements-cpu.txt

FROM needs-cpu AS needs-gpu
COPY ops/image/requirements-gpu.txt ./
RUN /opt/ebbtide/bin/pip install --no-deps --require-hashes --only-binary :all: -r requirements-gpu.txt

# Our own wheel, in a stage that has setuptools; the image gets the wheel's files alone.
FROM base AS wheel
COPY ops/image/requirements-build.txt ./
RUN /opt/ebbtide/bin/pip install --require-hashes --only-binary :all: -r requirements-build.txt
COPY . .
RUN /opt/ebbtide/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM needs-cpu AS whole-cpu
COPY --from=wheel /wheel /wheel
RUN /opt/ebbtide/bin/pip install --no-deps /wheel/*.whl && python3 slim.py /opt/ebbtide

FROM needs-gpu AS whole-gpu
COPY --from=wheel /wheel /wheel
RUN /opt/ebbtide/bin/pip install --no-deps /wheel/*.whl && python3 slim.py /opt/ebbtide

FROM ${PYTHON_IMAGE}${BASE_DIGEST} AS runtime
RUN useradd --system --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ebbtide
# NUMBA_CACHE_DIR: the compiled fold depends on the machine's CPU, so it is compiled there, once a container.
ENV PATH=/opt/ebbtide/bin:$PATH \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/tmp/numba \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=2 \
    EBBTIDE_HTTP__HOST=0.0.0.0 \
    EBBTIDE_HTTP__PORT=8080
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
# The first start compiles the fold and every padded size of the model: a minute on a small machine.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['EBBTIDE_HTTP__PORT']}/healthz\", timeout=2)"]
STOPSIGNAL SIGTERM
# An init as the first process: it passes signals on, and takes in what others leave behind.
ENTRYPOINT ["dumb-init", "--", "ebbtide", "worker"]

FROM runtime AS gpu
COPY --from=whole-gpu /opt/ebbtide /opt/ebbtide

FROM runtime AS cpu
COPY --from=whole-cpu /opt/ebbtide /opt/ebbtide
