# siam-bids as a BIDS App: docker run -v /data:/data:ro -v /out:/out siam-bids /data /out participant
# CPU by default; for CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /src
WORKDIR /src
RUN python3 -m venv /opt/siam-bids \
 && /opt/siam-bids/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" \
      --constraint constraints.txt .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="siam-bids" \
      org.opencontainers.image.description="Head MRI segmentation as a BIDS App" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/siam-bids /opt/siam-bids
ENV PATH=/opt/siam-bids/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
USER 1000
ENTRYPOINT ["siam-bids"]
