/** Puts the page together: who is signed in, which video is looked at, and what the buttons do. */

import { ask, onUnauthorized, Refusal } from "./api.js";
import { AskForm } from "./form.js";
import { Shelf } from "./shelf.js";
import { Videos } from "./videos.js";
import { Viewer } from "./viewer.js";
import { howFar, sentence } from "./words.js";

const SIGNED_IN = "mutoscope signed in";
const at = (id) => document.getElementById(id);

const videos = new Videos({ changed, connected, looked: () => selected });
const viewer = new Viewer(videos, { again, reuse, remove, cancel, tried });
const shelf = new Shelf(videos, { select: lookAt, cancel });
let form = null;
let selected = location.hash.slice(1);
let following = !selected; // what is made now, until somebody looks at another
let drawing = null;

/** Draws once for all changes of a moment. Not by animation frames: a hidden tab has none, but a title. */
function changed(id) {
  announce(id);
  drawing ??= setTimeout(() => {
    drawing = null;
    draw();
  });
}

function draw() {
  const [first] = videos.unfinished;
  if (following && first) selected = first.id;
  if (!videos.get(selected)) selected = (first ?? videos.finished[0])?.id ?? "";
  const video = videos.get(selected);
  viewer.draw(video);
  shelf.draw(selected);
  document.title = first ? `${first.progress} % · Mutoscope` : "Mutoscope";
  history.replaceState(null, "", selected ? `#${selected}` : location.pathname);
}

/** Says aloud what happens to the video that is looked at: each change of state, and each quarter of the way. */
function announce(id) {
  const video = videos.get(id);
  if (!video || id !== selected) return;
  const moment = `${id} ${video.state} ${Math.floor(video.progress / 25)}`;
  if (moment !== announce.last) at("announcer").textContent = howFar(video, videos.ahead(video));
  announce.last = moment;
}

function lookAt(id) {
  selected = id;
  following = false;
  draw();
  viewer.focus();
}

function asked(video) {
  following = true;
  videos.add(video);
  draw();
  at("announcer").textContent = howFar(video, videos.ahead(video));
  viewer.show();
}

async function again(video) {
  await tried(async () => {
    asked(await ask("POST", `v1/videos/${video.id}/again`));
    viewer.focus();
  });
}

async function reuse(video) {
  await tried(() => form.fill(video));
}

async function cancel(video) {
  await tried(async () => videos.put(await ask("POST", `v1/videos/${video.id}/cancel`)));
}

async function remove(video) {
  const dialog = at("confirm");
  at("confirm-text").textContent =
    `“${video.request.prompt}” and all that was sent for it are removed from the server. They cannot be brought back.`;
  dialog.returnValue = "no"; // what Escape leaves
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  if (dialog.returnValue !== "yes") return;
  await tried(async () => {
    await ask("DELETE", `v1/videos/${video.id}`);
    videos.forget(video.id);
    at("announcer").textContent = "Deleted";
    at("gallery-title").focus();
  });
}

/** An action of a button; what goes wrong is said where the video is. */
async function tried(action) {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    viewer.complain(error.message);
  }
}

function connected(yes) {
  at("connection").textContent = yes ? "" : "The server does not answer. Trying again…";
}

function showTokenForm() {
  videos.end();
  at("studio").hidden = true;
  at("token-form").hidden = false;
  at("sign-out").hidden = true;
  at("token").focus();
}

async function signIn(event) {
  event.preventDefault();
  const error = at("token-error");
  error.hidden = true;
  try {
    await ask("POST", "v1/session", { token: at("token").value });
  } catch ({ message }) {
    Object.assign(error, { textContent: sentence(message), hidden: false });
    at("token").ariaInvalid = "true";
    at("token").focus();
    return;
  }
  at("token-form").reset();
  localStorage.setItem(SIGNED_IN, "yes");
  await start();
  at("viewer-title").focus();
}

async function signOut() {
  await ask("DELETE", "v1/session");
  localStorage.removeItem(SIGNED_IN);
  sessionStorage.clear(); // the draft is not for who comes next
  location.reload();
}

async function start() {
  try {
    const { data: models } = await ask("GET", "v1/models");
    connected(true);
    at("token-form").hidden = true;
    at("studio").hidden = false;
    at("sign-out").hidden = !localStorage.getItem(SIGNED_IN);
    form = new AskForm(models, asked);
    videos.open();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 401) return;
    connected(false);
    setTimeout(start, 2000);
  }
}

onUnauthorized(showTokenForm);
at("token-form").onsubmit = signIn;
at("sign-out").onclick = signOut;
addEventListener("hashchange", async () => {
  const id = location.hash.slice(1);
  if (id && (await videos.find(id))) lookAt(id);
});
start();
