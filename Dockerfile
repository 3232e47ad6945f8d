# syntax=docker/dockerfile:1
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/wadm
COPY requirements.txt ./
RUN /opt/wadm/bin/pip install -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY wadm_mcp ./wadm_mcp
RUN /opt/wadm/bin/pip install --no-deps . && /opt/wadm/bin/pip uninstall --yes setuptools pip

FROM python:3.11.14-slim-bookworm
# No build tools stay behind: those of the base image go too.
RUN python -c "import shutil, site, pathlib, ensurepip; shutil.rmtree(pathlib.Path(ensurepip.__file__).parent); \
    [shutil.rmtree(path) if path.is_dir() else path.unlink() for folder in site.getsitepackages() \
    for name in ('pip*', 'setuptools*', 'wheel*', 'pkg_resources', '_distutils_hack', 'distutils-precedence.pth') \
    for path in pathlib.Path(folder).glob(name)]" && rm -f /usr/local/bin/pip* /usr/local/bin/wheel
RUN useradd --system --uid 8920 --home-dir /data --no-create-home wadm && install -d -o wadm -g wadm /data
COPY --from=build /opt/wadm /opt/wadm
ENV PATH=/opt/wadm/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    ENVIRONMENT=production WADM_HOST=0.0.0.0 WADM_PORT=8920 WADM_DATA_DIR=/data
USER wadm
WORKDIR /data
VOLUME /data
EXPOSE 8920
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['WADM_PORT']}/health/live\", timeout=4)"]
ENTRYPOINT ["wadm-mcp"]
CMD ["serve"]
