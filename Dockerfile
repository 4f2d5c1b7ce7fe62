# A server for one run, on CPUs or on a GPU. The run is mounted, never copied in: it is yours.
#
#   docker build -t genrec .                                                        # CPU
#   docker build -t genrec:gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .   # GPU
#   docker run --rm -p 8000:8000 -v "$PWD/runs/shop:/run/genrec:ro" -e GENREC_TOKEN=... genrec
#   docker run --rm --gpus all -p 8000:8000 -v "$PWD/runs/shop:/run/genrec:ro" -e GENREC_TOKEN=... genrec:gpu
#
# torch's wheels for CUDA carry their libraries, so both are the same image but for them; the host brings the driver.
FROM python:3.11.13-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=2.13.0
# A compiler for packages without a wheel; git for the version, which is the tag's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/genrec
ENV PATH=/opt/genrec/bin:$PATH
RUN pip install --no-cache-dir "torch==${TORCH}" --index-url "${TORCH_INDEX}"
WORKDIR /src
COPY . .
# Versions are bounded in pyproject.toml.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[serve]'

FROM python:3.11.13-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home genrec
COPY --from=build /opt/genrec /opt/genrec
ENV PATH=/opt/genrec/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/genrec
EXPOSE 8000
# A backbone is read before the first answer, which may be from the Hub: hence the minutes at the start.
HEALTHCHECK --interval=15s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# exec form, so that SIGTERM reaches the server, which answers what it took and then ends
ENTRYPOINT ["genrec", "serve", "/run/genrec", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--token-env", "GENREC_TOKEN"]
