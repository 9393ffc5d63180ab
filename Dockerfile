# The service's image, by --build-arg DEVICE:
# - cpu: OpenVINO, without torch. Serves converted models.
# - cuda, with --build-arg TORCH=cu130: torch on NVIDIA's GPUs.
# - torch: CPU, with torch. Also converts models.
# Build it with `make image`; see deploy/compose/README.md.

# The Python of the tests. A tag and no digest: a rebuild takes Debian's fixes.
ARG PYTHON=3.11-slim-bookworm
ARG DEVICE=cpu

FROM python:${PYTHON} AS packages
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# Dependencies first, the service last: a change of its code does not reinstall them. Each file is
# locked by SHA-256 (`make lock`), wheels only. OpenVINO's telemetry package is installed, since
# `pip check` requires it; service/engine/openvino_api.py blocks its import.
COPY deploy/requirements.txt ./
RUN pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: \
    --requirement requirements.txt

# The wheel is built by locked tools, which are not in the image.
FROM packages AS wheel
COPY deploy/build.txt ./
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: \
    --requirement build.txt
COPY pyproject.toml README.md LICENSE ./
COPY model_store model_store
COPY service service
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# Serving on a CPU.
FROM packages AS build
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && pip check

# With torch, which converts weights and computes on GPUs. TORCH is the build: "cpu", or a version of
# CUDA in PyTorch's index. CUDA's libraries are wheels, so all images have one base; the host has the
# driver. Pinned by version and not by hash, since each build of that index has its own hash. Its
# other dependencies are installed above, except CUDA's libraries, whose versions torch requires.
FROM packages AS torch
COPY deploy/torch-requirements.txt deploy/torch.txt ./
RUN pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: \
    --requirement torch-requirements.txt
ARG TORCH=cpu
RUN pip install --no-cache-dir --only-binary :all: --requirement torch.txt \
    --index-url "https://download.pytorch.org/whl/${TORCH}"
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && pip check

# Weights are downloaded and converted for OpenVINO at build time, or mounted at /models; never at
# run time.
FROM torch AS models
ARG MODEL=""
RUN mkdir /models && IFS=, && for name in ${MODEL}; do \
    googlenet-service models fetch "${name}" --model-store /models || exit 1; done

FROM build AS cpu
FROM torch AS cuda
FROM ${DEVICE} AS venv

FROM python:${PYTHON}
# Python's own modules come uncompiled; on a read-only file system each process, health checks
# included, would compile them again.
RUN useradd --uid 10001 --user-group --no-log-init --no-create-home --home-dir /tmp googlenet \
    && python -m compileall -q "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=venv /opt/venv /opt/venv
COPY --from=models --chown=10001:10001 /models /models

# Only /tmp has to be writable. The process serves the named model or ends with an error; it neither
# downloads nor falls back. NVIDIA_VISIBLE_DEVICES is not set: it would give every GPU of a node to
# containers that request none.
ARG MODEL=""
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/.cache \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    GOOGLENET_MODEL=${MODEL:-googlenet} \
    GOOGLENET_HOST=0.0.0.0 \
    GOOGLENET_PORT=8000 \
    GOOGLENET_GRPC_PORT=8001 \
    GOOGLENET_MODEL_STORE=/models \
    GOOGLENET_REQUIRE_MODEL=1 \
    GOOGLENET_DOWNLOAD_WEIGHTS=0 \
    GOOGLENET_LOG_FORMAT=json \
    GOOGLENET_DRAIN_SECONDS=10

# A number: Kubernetes cannot verify that a named user is not root.
USER 10001:10001
EXPOSE 8000 8001

# Readiness: dependents of a "healthy" container start, and it gets requests. Supervisors that restart
# by liveness have their own probes. http.client, since it ignores proxies. The probe port has no TLS;
# a certificate is not verified: it names the service, not this address.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import http.client, os, ssl, sys; probes = int(os.environ.get('GOOGLENET_PROBE_PORT', 0)); address = ('127.0.0.1', probes or int(os.environ['GOOGLENET_PORT'])); secure = os.environ.get('GOOGLENET_TLS_CERT_FILE') and not probes; connection = http.client.HTTPSConnection(*address, timeout=4, context=ssl._create_unverified_context()) if secure else http.client.HTTPConnection(*address, timeout=4); connection.request('GET', '/readyz'); sys.exit(connection.getresponse().status != 200)"]

# Exec form: the listening process gets the signal, drains, finishes its requests and ends the worker.
STOPSIGNAL SIGTERM
ENTRYPOINT ["googlenet-service"]
CMD ["serve"]

# Last, since these change with every commit.
ARG VERSION=""
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="googlenet-service" \
      org.opencontainers.image.description="GoogLeNet image classification service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
