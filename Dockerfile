# The BIDS-App in a container, for processors without a GPU:
#   docker build -t nnunet-softseg .
#   mkdir -p out
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD/bids:/bids:ro" -v "$PWD/out:/out" -v "$PWD/model:/model:ro" \
#     nnunet-softseg /bids /out participant -m /model
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
COPY --from=build /wheels /wheels
COPY constraints/cpu.txt /wheels/cpu.txt
# The constraint stops pip where the CPU build of PyTorch is not on offer, rather than fetch CUDA libraries.
RUN python -m pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    --constraint /wheels/cpu.txt "$(echo /wheels/nnunet_softseg-*.whl)[cpu]" \
  && rm -r /wheels \
  && useradd --uid 1000 --create-home softseg
USER 1000
ENV MPLCONFIGDIR=/tmp/matplotlib PYTHONNOUSERSITE=1
ENTRYPOINT ["nnunet-softseg-bids"]
