# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""
A Hub on the loopback interface, with the requests that uploading and loading models and data sets need.

Repositories are dictionaries of files, on the branch `main` and on others. The real client finds it by `HF_ENDPOINT`, which it
reads at import, so run it in a process of its own.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


LARGE = (".safetensors", ".parquet")
TOKEN = "hf_token_of_the_test"


class HubServer:
    """
    A running Hub, as a context manager.

    `repos[repo_type, name]` maps paths to bytes, for the repo types `"models"`, `"datasets"` and `"spaces"`.
    `branches[repo_type, name, branch]` does the same for branches other than `main`. Writing, and reading `private` repositories,
    needs the `TOKEN`.
    """

    def __enter__(self):
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.branches: dict[tuple[str, str, str], dict[str, bytes]] = {}
        self.sdks: dict[str, str] = {}  # of Spaces, by name
        self.private: set[tuple[str, str]] = set()
        self.objects: dict[str, bytes] = {}  # large files, by their hash
        self.requests: list[tuple[str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a client. Large files go over plain HTTP too."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args):
        pass

    def reply(self, content=b"", status: int = 200, **headers: str):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code: str, status: int = 404):
        self.reply({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for methods, pattern, action in self.ROUTES:
            if self.command in methods and (match := re.fullmatch(pattern, path)):
                if self.command in ("POST", "PUT") and "paths-info" not in path and not path.startswith("/lfs/"):
                    if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                        return self.refuse("Unauthorized", 401)
                found = match.groupdict()
                repo = ((found.get("repo_type") or "models").strip("/"), found.get("name"))
                if repo in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.refuse("RepoNotFound", 401)  # as if it were not there
                return action(self, body, **found)
        self.refuse("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    # ----------------------------------------------------------------------------------------------------- reading

    def files_of(self, repo_type, name, revision) -> dict[str, bytes] | None:
        """Return the files of a branch or a commit. If there is none, send the error and return `None`."""
        files = self.hub.repos.get((repo_type, name))
        if files is None:
            return self.refuse("RepoNotFound")
        found = self.hub.branches.get((repo_type, name, revision), files)
        heads = [files, *(f for key, f in self.hub.branches.items() if key[:2] == (repo_type, name))]
        of_commit = [f for f in heads if self.commit_of(f) == revision]
        if of_commit:
            return of_commit[0]
        if revision not in (None, "main") and (repo_type, name, revision) not in self.hub.branches:
            return self.refuse("RevisionNotFound")
        return found

    def commit_of(self, files: dict[str, bytes]) -> str:
        return hashlib.sha1(
            repr(sorted((path, _oid(content)) for path, content in files.items())).encode()
        ).hexdigest()

    def entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
        if path.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def info(self, body, repo_type, name, revision="main"):
        files = self.files_of(repo_type, name, revision)
        if files is None:
            return None
        commit = self.commit_of(files)
        siblings = [{"rfilename": path} for path in files]
        common = {"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        self.reply(common | {"lastModified": "2026-01-01T00:00:00.000Z", "downloads": 0, "likes": 0})

    def tree(self, body, repo_type, name, revision, folder=""):
        files = self.files_of(repo_type, name, revision)
        if files is None:
            return None
        folder = (folder or "").strip("/")
        within = {path: content for path, content in files.items() if not folder or path.startswith(folder + "/")}
        if not within and folder:
            return self.refuse("EntryNotFound")
        entries = {}
        for path, content in within.items():
            first, *rest = path[len(folder) :].strip("/").split("/")
            parent = f"{folder}/{first}".strip("/")
            if rest:
                entries[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
            if not rest or "recursive=true" in self.path.lower():
                entries[path] = self.entry(path, content)
        self.reply(list(entries.values()))

    def paths_info(self, body, repo_type, name, revision):
        files = self.files_of(repo_type, name, revision)
        if files is None:
            return None
        paths = re.findall(r"paths=([^&]+)", body.decode()) or json.loads(body or b"{}").get("paths", [])
        found = []
        for path in map(unquote, [paths] if isinstance(paths, str) else paths):
            if path in files:
                found.append(self.entry(path, files[path]))
            elif any(other.startswith(path + "/") for other in files):
                found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self.reply(found)

    def resolve(self, body, repo_type, name, revision, path):
        files = self.files_of((repo_type or "models").strip("/"), name, revision)
        if files is None:
            return None
        commit = self.commit_of(files)
        if path not in files:
            self.reply(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return None
        content = files[path]
        sha = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _oid(content)
        headers = {"X_Repo_Commit": commit, "ETag": f'"{sha}"', "Accept_Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
            return self.reply(content[start : end + 1], 206, **headers)
        self.reply(content, **headers)

    # ----------------------------------------------------------------------------------------------------- writing

    def create(self, body):
        request = json.loads(body)
        name = f"{request['organization'] or 'someone'}/{request['name']}"
        repo_type = f"{request.get('type') or 'model'}s"
        exists = (repo_type, name) in self.hub.repos
        if repo_type == "spaces":
            if request.get("sdk") not in ("gradio", "docker", "static"):
                return self.refuse("BadRequest", 400)
            self.hub.sdks.setdefault(name, request["sdk"])
        self.hub.repos.setdefault((repo_type, name), {})
        folder = "" if repo_type == "models" else f"{repo_type}/"
        self.reply({"url": f"{self.hub.endpoint}/{folder}{name}", "id": name}, 409 if exists else 200)

    def validate(self, body):
        self.reply({"errors": [], "warnings": []})

    def preupload(self, body, repo_type, name, revision):
        def mode(file):
            return {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}

        self.reply({"files": [mode(file) | {"shouldIgnore": False} for file in json.loads(body)["files"]]})

    def batch(self, body, repo_type, name):
        def action(item):
            return item | {"actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}}}

        self.reply({"transfer": "basic", "objects": [action(item) for item in json.loads(body)["objects"]]})

    def upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse("BadHash", 400)
        self.hub.objects[oid] = body
        self.reply()

    def commit(self, body, repo_type, name, revision):
        files = self.hub.repos[repo_type, name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.commit_of(files)
        self.reply({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit})

    REPO = r"/api/(?P<repo_type>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
    ROUTES = [
        (("GET",), REPO + r"(?:/revision/(?P<revision>[^/]+))?", info),
        (("GET",), REPO + r"/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", tree),
        (("POST",), REPO + r"/paths-info/(?P<revision>[^/]+)", paths_info),
        (
            ("GET", "HEAD"),
            r"/(?P<repo_type>datasets/|spaces/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
            resolve,
        ),
        (("POST",), r"/api/repos/create", create),
        (("POST",), r"/api/validate-yaml", validate),
        (("POST",), REPO + r"/preupload/(?P<revision>[^/]+)", preupload),
        (("POST",), r"/(?P<repo_type>datasets/|spaces/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", batch),
        (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})", upload),
        (("POST",), REPO + r"/commit/(?P<revision>[^/]+)", commit),
    ]
