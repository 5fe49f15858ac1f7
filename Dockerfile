# siam-bids as a BIDS App, with the compact models inside. Build from a copy of the repository:
#   docker build -t siam-bids .
#   docker build -t siam-bids:cuda --build-arg PIP_OPTIONS= .      # PyPI's torch, with CUDA
# BASE_IMAGE may be any image with Python 3.10 or newer, its venv module, and glibc.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ARG PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
RUN python3 -m venv /opt/siam-bids
COPY . /src
# Tests and headers of the dependencies are a quarter of their size and serve nobody here.
RUN /opt/siam-bids/bin/pip install --no-cache-dir ${PIP_OPTIONS} --constraint /src/constraints.txt /src \
 && /opt/siam-bids/bin/pip uninstall --yes pip \
 && cd /opt/siam-bids/lib/python3*/site-packages \
 && rm -rf torch/include torch/share/cmake \
 && find . -type d \( -name tests -o -name test \) \
      ! -path './torch/*' ! -path './numpy/*' -prune -exec rm -rf {} +

FROM ${BASE_IMAGE}
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="siam-bids" \
      org.opencontainers.image.description="BIDS App that segments every head MRI of a study" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.bids.app="true"
COPY --from=build /opt/siam-bids /opt/siam-bids
ENV PATH=/opt/siam-bids/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 1000
HEALTHCHECK CMD ["siam-bids", "--version"]
ENTRYPOINT ["siam-bids"]
