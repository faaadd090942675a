"""A Hub that keeps model repositories in memory: what the client of huggingface_hub needs to push, list and load."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_" + "t" * 34


class Hub:
    """
    The server. `with Hub() as hub:` runs it at `hub.url`.

    Attributes:
        repos (`dict[str, dict[str, bytes]]`): the files of each repository.
        requests (`list[str]`): method and path of each request.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self._body()
        parts = self._start()
        if parts == ["api", "validate-yaml"]:
            text = json.loads(body)["content"]
            metadata = yaml.safe_load(text.split("---")[1])
            errors = [] if isinstance(metadata, dict) else [{"message": "metadata must be a mapping"}]
            return self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if parts == ["api", "repos", "create"]:
            request = json.loads(body)
            name = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
            if name in self.hub.repos:
                return self._json(
                    {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409
                )
            self.hub.repos[name] = {}
            self.hub.commits[name] = hashlib.sha1(name.encode()).hexdigest()
            return self._json({"url": f"{self.hub.url}/{name}", "name": name})
        repo, action = "/".join(parts[2:4]), parts[4]
        if repo not in self.hub.repos:
            return self._missing()
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            return self._json({"files": modes})
        if action == "commit":
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.hub.repos[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            oid = hashlib.sha1(body).hexdigest()
            self.hub.commits[repo] = oid
            url = f"{self.hub.url}/{repo}/commit/{oid}"
            return self._json({"success": True, "commitUrl": url, "commitOid": oid})
        return self._missing()

    def do_HEAD(self):
        self._read(self._start())

    def do_GET(self):
        self._read(self._start())

    def _read(self, parts):
        if parts == ["api", "models"]:
            found = [{"id": repo, "modelId": repo, "tags": _tags(files)} for repo, files in self.hub.repos.items()]
            wanted = set(self.query.get("filter", []))
            return self._json([entry for entry in found if wanted <= set(entry["tags"])])
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            if repo not in self.hub.repos:
                return self._missing()
            files = self.hub.repos[repo]
            if parts[4:5] == ["tree"]:
                return self._json(
                    [{"type": "file", "path": p, "size": len(c), "oid": _etag(c)} for p, c in sorted(files.items())]
                )
            siblings = [{"rfilename": path} for path in sorted(files)]
            return self._json({"id": repo, "modelId": repo, "sha": self.hub.commits[repo], "siblings": siblings})
        repo, path = "/".join(parts[:2]), "/".join(parts[4:])
        if repo not in self.hub.repos:
            return self._missing()
        if parts[2:3] != ["resolve"] or path not in self.hub.repos[repo]:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"}, repo)
        content = self.hub.repos[repo][path]
        return self._send(content, 200, {"ETag": f'"{_etag(content)}"'}, repo)

    def _missing(self):
        return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _start(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.query = parse_qs(urlsplit(self.path).query)
        return parts

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, value, status=200, headers=None, repo=None):
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})}, repo)

    def _send(self, content: bytes, status: int, headers: dict, repo=None):
        self.send_response(status)
        if repo:
            self.send_header("X-Repo-Commit", self.hub.commits[repo])
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tags(files: dict[str, bytes]) -> list[str]:
    """What a list of models can be filtered by, from the metadata of the card."""
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1]) if "README.md" in files else {}
    return [*metadata.get("tags", []), *([metadata["library_name"]] if "library_name" in metadata else [])]


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
