# One image for both processes: `hope serve` (the default) and `hope worker`.
#
#   docker build --tag hope-server .
#   docker run --publish 127.0.0.1:8000:8000 --volume hope-data:/data --env HOPE_API_KEYS=<key> hope-server
#
# On x86-64, pip may take PyTorch's CUDA build (about 3 GB more). For the CPU build, name an index that carries it:
#   docker build --build-arg TORCH_INDEX=<address; see "Start Locally" on pytorch.org, CPU> .

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /source
RUN python3 -m venv /opt/hope
ENV PATH=/opt/hope/bin:$PATH

# The dependencies first: this layer is large, and changes only with these two files.
COPY pyproject.toml constraints.txt ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX" --retries 1}

COPY README.md LICENSE ./
COPY engine engine
COPY server server
COPY clients clients
RUN pip install --constraint constraints.txt --no-deps .


FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="hope-server" \
      org.opencontainers.image.description="A chat server whose memory is in the weights" \
      org.opencontainers.image.licenses="Apache-2.0"

# A fixed number, so that a volume's owner is the same on every host and Kubernetes can check "not root".
RUN groupadd --gid 10001 hope \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin hope \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=build /opt/hope /opt/hope

# Listens on every address of the container, and therefore starts only with keys (or with --insecure).
ENV PATH=/opt/hope/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOPE_HOST=0.0.0.0 \
    HOPE_PORT=8000 \
    HOPE_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['HOPE_PORT']}/livez\", timeout=4)"]
ENTRYPOINT ["hope"]
CMD ["serve"]
