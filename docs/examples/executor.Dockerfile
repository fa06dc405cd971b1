# An executor as a container. Built in a clone of the repository, or from its address:
#   docker build -t trainforge-executor -f docs/examples/executor.Dockerfile .
# Joined once, then started; its key, caches and jobs lie in the volume:
#   docker run --rm -v trainforge:/var/lib/trainforge trainforge-executor join URL TOKEN --name lab-1
#   docker run -d --init --gpus all --restart unless-stopped --name lab-1 -v trainforge:/var/lib/trainforge trainforge-executor
#
# Within a container Docker forbids what bubblewrap needs: jobs are kept apart as `process`, each with a user of its
# own. For sandboxes add --security-opt seccomp=unconfined --security-opt systempaths=unconfined, and on hosts with
# AppArmor --security-opt apparmor=unconfined: then the sandbox keeps jobs in, and the container no longer does.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

# git for commits, bubblewrap and util-linux to keep jobs apart; newer git is as good.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap ca-certificates git util-linux \
    && rm -rf /var/lib/apt/lists/*

# Beside torch and Accelerate for jobs that inherit this Python; EXTRAS=s3 leaves them out.
ARG EXTRAS=train
WORKDIR /opt/trainforge
COPY LICENSE README.md pyproject.toml constraints.txt ./
COPY config config
COPY executor executor
COPY hooks hooks
COPY sender sender
COPY trainforge trainforge
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" \
    && rm -rf build

ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/trainforge \
    TRAINFORGE_EXECUTOR_DATA_DIR=/var/lib/trainforge/executor \
    UV_CACHE_DIR=/var/lib/trainforge/uv
# As root, which is what it takes to give each job a user that cannot read the executor's key.
WORKDIR /var/lib/trainforge
VOLUME /var/lib/trainforge
STOPSIGNAL SIGTERM
ENTRYPOINT ["trainforge", "executor"]
CMD ["start"]
