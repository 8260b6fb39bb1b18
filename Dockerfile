# The web page with the shipped detectors; no training framework, no root, nothing written.
#
#   docker build -t face-detector .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#       -p 127.0.0.1:8000:8000 face-detector
#
# Whoever shows it to others puts a server with TLS before it, and sets DETECTOR_ALLOWED_HOSTS to the
# name that visitors use.

FROM python:3.12-slim

# OpenCV's wheel wants these two.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements-infer.txt requirements-web.txt ./
RUN pip install --no-cache-dir -r requirements-web.txt

COPY backend.py ./
COPY models models
COPY pipeline pipeline
COPY templates templates
COPY static static
COPY samples samples
COPY weights weights

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/tmp/cache \
    DETECTOR_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "backend.py"]
