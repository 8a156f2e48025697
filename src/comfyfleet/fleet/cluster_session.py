"""A session that uses the owner's Ray cluster beside, or instead of, this machine's devices.

This machine takes part by a Ray node of the session's own, which offers nothing to others: so it
works from any machine that the cluster's nodes can reach, and workers on this machine's devices
run on it. At the end this node and our workers leave; everything else of the cluster stays.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from comfyfleet.fleet.cluster import Cluster, check_cluster, own_address
from comfyfleet.fleet.ray_node import NodePlan, RayNode, cluster_settings
from comfyfleet.fleet.session import OBJECT_STORE_BYTES, RAY_ENVIRONMENT, Session


class ClusterSession(Session):
    """As ``Session``; ``start`` connects to the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster
        self._node: RayNode | None = None
        self._token_file: Path | None = None

    def stop(self) -> None:
        """Disconnect: Ray ends our workers, wherever they are."""
        super().stop()
        if self._node is not None:
            self._node.end()

    def _settings(self) -> dict[str, str]:
        if check_cluster(self._cluster):
            self._token_file = self.write_token(self._cluster.token)
        return {**RAY_ENVIRONMENT, **cluster_settings(self._token_file)}

    def _connect(self, ray: Any) -> None:
        # Of a node that was lost it prints pages, with that node's log; we say it in a sentence.
        logging.getLogger("ray._private.worker").setLevel(logging.CRITICAL)
        cluster = self._cluster
        plan = NodePlan(
            folder=self.folder,
            token_file=self._token_file,
            head=cluster.address,
            port=cluster.port,
            address=own_address(cluster.host, cluster.port),
            object_store_bytes=OBJECT_STORE_BYTES,
        )
        self._node = RayNode(plan)
        self._node.wait_until_up()
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            configure_logging=False,
            # By which Ray knows the node from others on this machine.
            _temp_dir=str(plan.ray_folder),
        )
