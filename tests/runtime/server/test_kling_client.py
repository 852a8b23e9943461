"""npm's `kling-api` 1.0.0, unmodified, as a client over https. MUTOSCOPE_KLING_API names the folder that has it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mutoscope.pictures import Picture

from tests.runtime.server.picturing import OTHER, PIXELS, bundle_with_pictures, saved
from tests.runtime.server.served import CIRCLE, running
from tests.runtime.server.test_tls import certified

ACCESS, SECRET = "an-access-key", "a-secret-key-of-32-characters-or-more"
HOST = "videos.example"

# The client downloads from no address of this machine, so a name has to lead here that is none; Node asks it of this.
NAMES = """
const dns = require("node:dns"), lookup = dns.lookup;
dns.lookup = (name, options, done) => lookup(name === "videos.example" ? "127.0.0.1" : name, options, done);
"""
PROGRAM = """
import { readFile } from "node:fs/promises";
import { createHash } from "node:crypto";
import { KlingAPI } from "kling-api";

const [port, prompt] = process.argv.slice(2);
const api = (secretKey) =>
  new KlingAPI({ accessKey: "an-access-key", secretKey, baseUrl: `https://videos.example:${port}` });
const refusal = async (call) => {
  try { await call(); return null; } catch (error) { return [error.code, error.httpStatus, error.message]; }
};
const client = api(process.env.SECRET);
const task = await client.textToVideo({ prompt, aspect_ratio: "1:1", external_task_id: "one", cfg_scale: 0.5 });
const waiting = { interval: 100, showSpinner: false };
const result = await client.waitForVideoResult(task.data.task_id, undefined, waiting);
const named = await client.queryTextToVideoTask("one");
const pictured = async (pictures) => {
  const { data } = await client.imageToVideo({ prompt, ...pictures });
  const ask = (id) => client.queryImageToVideoTask(id);
  return (await client.waitForVideoResult(data.task_id, ask, waiting)).data;
};
const costs = await client.getAccountInfo(1726124664368, 1727366400000);
const [path] = await client.saveVideoResult(result, "saved", prompt);
console.log(JSON.stringify({
  task, result, named, costs,
  sha256: createHash("sha256").update(await readFile(path)).digest("hex"),
  callback: await refusal(() => client.textToVideo({ prompt, callback_url: "https://example.com" })),
  pictured: await pictured({ image: "./first.png" }),
  both: await pictured({ image: "./first.png", image_tail: "./last.png", mode: "pro", model_name: "kling-v1-6" }),
  address: await refusal(() => client.imageToVideo({ image: "https://example.com/a.png", prompt })),
  none: await refusal(() => client.imageToVideo({ image: "aGVsbG8=", prompt })),
  unknown: await refusal(() => client.queryTextToVideoTask("video_0")),
  stranger: await refusal(() => api("another-secret-key-of-32-characters").textToVideo({ prompt })),
}));
"""


def client_folder() -> Path:
    """The folder with the package, or a skipped test that says what is missing."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    folder = Path(os.environ.get("MUTOSCOPE_KLING_API", "")) / "node_modules"
    if not (folder / "kling-api" / "package.json").exists():
        pytest.skip("npm install --prefix FOLDER kling-api@1.0.0, and set MUTOSCOPE_KLING_API to that folder")
    assert json.loads((folder / "kling-api/package.json").read_text())["version"] == "1.0.0"
    return folder


def ran(folder: Path, port: str) -> dict[str, Any]:
    (folder / "names.cjs").write_text(NAMES)
    (folder / "client.mjs").write_text(PROGRAM)
    trusted = {"NODE_EXTRA_CA_CERTS": str(folder / "authority.pem"), "SECRET": SECRET}
    command = ["node", "--require", "./names.cjs", "client.mjs", port, CIRCLE]
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | trusted
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_client_makes_a_video_saves_it_and_hears_what_is_refused(tmp_path: Path):
    (tmp_path / "node_modules").symlink_to(client_folder())
    files = certified(tmp_path, HOST)
    (tmp_path / "keys").write_text(f"{ACCESS} {SECRET}")
    for name, pixels in (("first.png", PIXELS), ("last.png", OTHER)):
        (tmp_path / name).write_bytes(saved(pixels))
    bundles = dict.fromkeys(("kling-v1", "kling-v1-6"), bundle_with_pictures(tmp_path / "bundle"))
    options = {**files, "kling_keys": str(tmp_path / "keys")}
    with running(tmp_path / "data", bundles=bundles, token="a-token-of-32-characters-or-more", **options) as served:
        said = ran(tmp_path, served.url.rpartition(":")[2])
        task, result = said["task"]["data"], said["result"]["data"]
        assert task["task_status"] in ("submitted", "processing")
        assert task["task_info"] == result["task_info"] == {"external_task_id": "one"}
        [video] = result["task_result"]["videos"]
        assert (result["task_status"], video["duration"]) == ("succeed", "1.125")
        made = tmp_path / "data/videos" / task["task_id"] / "video.mp4"
        assert said["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()
        sent = {"pictured": (PIXELS, None), "both": (PIXELS, OTHER)}
        for name, pictures in sent.items():
            assert said[name]["task_status"] == "succeed"
            request = served.service.get(said[name]["task_id"]).request
            identities = [None if pixels is None else Picture(pixels).identity for pixels in pictures]
            assert [request.get("image"), request.get("last_image")] == identities
    assert said["named"]["data"]["task_id"] == task["task_id"]
    assert said["costs"]["data"]["resource_pack_subscribe_infos"] == []
    assert said["callback"][:2] == [1201, 400] and "callback_url" in said["callback"][2]
    assert said["address"][:2] == [1201, 400] and "never opens an address" in said["address"][2]
    assert said["none"][:2] == [1201, 400] and "image is not a picture" in said["none"][2]
    assert said["unknown"][:2] == [1203, 404]
    assert said["stranger"][:2] == [1002, 401]
