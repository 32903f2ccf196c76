# The backend with GPU support: `docker build -t transfiner-ml-backend .`
# The GPU libraries come with torch; the host needs the NVIDIA driver and its container toolkit only.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PATH=/app/.venv/bin:$PATH \
    PYTHONPATH=/app

WORKDIR /app

# An upstream checkout or URL of detectron2 to build instead of the locked wheel, for example
# --build-arg DETECTRON2=git+https://github.com/facebookresearch/detectron2
ARG DETECTRON2=
RUN if [ -n "$DETECTRON2" ]; then apt-get update && apt-get install -y --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*; fi

# The set-up of `make serve`, in a layer of its own that only changed versions build anew.
COPY requirements requirements
COPY pyproject.toml README.md LICENSE ./
COPY backend/__init__.py backend/__init__.py
COPY backend/bootstrap backend/bootstrap
RUN python3 -m backend.bootstrap app --detectron2 "$DETECTRON2"

COPY backend backend
COPY integration integration
COPY model model
COPY training training

# What the service writes lies in var, or where a volume is put; a new volume gets the owner of the folder below it.
RUN useradd --create-home --uid 1000 transfiner && mkdir -p var/promises /models && chown -R transfiner var /models
USER transfiner
ENV TRANSFINER_HOST=0.0.0.0
EXPOSE 9090
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/health', timeout=5)"]
ENTRYPOINT ["transfiner"]
CMD ["serve"]
