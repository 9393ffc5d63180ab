# The service's image, by --build-arg DEVICE:
# - cpu: OpenVINO computes, and there is no torch. It serves models that are converted already.
# - cuda, with --build-arg TORCH=cu130: torch computes on NVIDIA's GPUs.
# - torch: for the CPU, with torch. It converts models, too.
# `make image` builds it; deploy/compose/README.md says how to use it.

# The Python that the tests run on. A tag and no digest: to build anew is to take Debian's fixes.
ARG PYTHON=3.11-slim-bookworm
ARG DEVICE=cpu

FROM python:${PYTHON} AS packages
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# What is needed first, the service last: a change of its code installs nothing else anew. Each
# file has one of the SHA-256s in the lock (`make lock`), and none is a source that builds itself.
# OpenVINO requires its telemetry package, and pip checks that all is there that is required;
# service/engine/openvino_api.py sees to it that it cannot be imported.
COPY deploy/requirements.txt ./
RUN pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: \
    --requirement requirements.txt

# The wheel is built by locked tools, too, and they stay behind.
FROM packages AS wheel
COPY deploy/build.txt ./
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: \
    --requirement build.txt
COPY pyproject.toml README.md LICENSE ./
COPY model_store model_store
COPY service service
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# All that serves on a CPU.
FROM packages AS build
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && pip check

# The same with torch, which converts weights and computes on GPUs. TORCH names the build: "cpu",
# or a version of CUDA as PyTorch's index has it. CUDA's libraries are wheels, too, so all images
# have one base; the host brings the driver. By version and not by hash: each of that index's
# builds is a file of its own, with a hash of its own. What else torch needs is there already, but
# for CUDA's libraries, whose versions it says.
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

# Weights are fetched and converted for OpenVINO here, once, or are mounted at /models: never
# behind anybody's back later.
FROM torch AS models
ARG MODEL=""
RUN mkdir /models && IFS=, && for name in ${MODEL}; do \
    googlenet-service models fetch "${name}" --model-store /models || exit 1; done

FROM build AS cpu
FROM torch AS cuda
FROM ${DEVICE} AS venv

FROM python:${PYTHON}
# Python's own modules come uncompiled; where nothing can be written, each process that starts,
# the health check's included, would compile them for itself.
RUN useradd --uid 10001 --user-group --no-log-init --no-create-home --home-dir /tmp googlenet \
    && python -m compileall -q "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=venv /opt/venv /opt/venv
COPY --from=models --chown=10001:10001 /models /models

# Only /tmp has to be writable. Strict and without fetching: the model that was asked for, or an
# end that says what is missing. NVIDIA_VISIBLE_DEVICES is not set on purpose: it would hand
# every GPU of a node to a container that asked for none.
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

# A number: Kubernetes cannot tell from a name that it is not root's.
USER 10001:10001
EXPOSE 8000 8001

# Readiness: here "healthy" means "start what depends on it" and "send requests here". What
# restarts by liveness has probes of its own. http.client, for it knows nothing of proxies.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; connection = http.client.HTTPConnection('127.0.0.1', int(os.environ['GOOGLENET_PORT']), timeout=4); connection.request('GET', '/readyz'); sys.exit(connection.getresponse().status != 200)"]

# Exec form: the process that serves HTTP gets the signal itself. It drains, waits for what it
# has accepted and ends its worker.
STOPSIGNAL SIGTERM
ENTRYPOINT ["googlenet-service"]
CMD ["serve"]

# Last, since they change with every commit.
ARG VERSION=""
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="googlenet-service" \
      org.opencontainers.image.description="GoogLeNet as a REST service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
