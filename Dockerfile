# The service: docker build -t kmed . && docker run -p 127.0.0.1:8000:8000 -e KMED_TOKEN -v "$PWD/saved_models/blood:/run:ro" kmed
# See docs/serve.md.
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TF_CPP_MIN_LOG_LEVEL=2 \
    HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /source
COPY setup.py pyproject.toml README.md LICENSE NOTICE ./
COPY kmed kmed
RUN pip install ".[serve,dicom,onnx]" && rm -rf /source

RUN useradd --system --no-create-home --uid 10001 kmed
USER kmed
WORKDIR /tmp

EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]

# More options stand after the image's name, such as: docker run ... kmed --format onnx
ENTRYPOINT ["kmed", "serve", "/run", "--host", "0.0.0.0"]
