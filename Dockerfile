# syntax=docker/dockerfile:1
# The worker's image. Nothing in it is written at run time but /tmp, so a read-only root works:
#
#     docker build -t ebbtide .
#     docker run --read-only --tmpfs /tmp -v ./models:/models:ro -v ./secrets:/run/secrets:ro -p 8080:8080 \
#         -e EBBTIDE_KAFKA_URL=… -e EBBTIDE_REDIS_URL=… -e EBBTIDE_REDIS__PASSWORD_FILE=/run/secrets/redis \
#         -e EBBTIDE_HTTP__TOKEN_FILE=/run/secrets/http-token ebbtide
#
# It listens on all interfaces of its container, so /v1 needs the token: without one it answers 403.
# EXTRAS=gpu adds the CUDA libraries (run it with --gpus all).
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/ebbtide
WORKDIR /src
# The dependencies are a layer of their own: a change of our code alone does not fetch TensorFlow again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        chosen = [e for e in '${EXTRAS}'.split(',') if e]; \
        print('\n'.join(p['dependencies'] + [d for e in chosen for d in p['optional-dependencies'][e]]))" > requirements.txt \
    && /opt/ebbtide/bin/pip install -r requirements.txt -c constraints.txt
COPY . .
RUN /opt/ebbtide/bin/pip install --no-deps .

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ebbtide
COPY --from=build /opt/ebbtide /opt/ebbtide
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
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['EBBTIDE_HTTP__PORT']}/healthz\", timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["ebbtide", "worker"]
