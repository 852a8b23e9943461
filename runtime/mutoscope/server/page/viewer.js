/** The one video that is looked at: how far it is, its picture, and what can be done with it. */

import { ask, content, sentFor } from "./api.js";
import { isUnfinished } from "./videos.js";
import { facts, howFar, label, sentence, when } from "./words.js";

const at = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** `does` has what its buttons do: `again`, `reuse`, `remove`, `cancel`, each for a video, and `tried` around an action that may fail. */
export class Viewer {
  constructor(videos, does) {
    Object.assign(this, { videos, does, shown: "", followed: null });
    at("recipe").ontoggle = () => at("recipe").open && does.tried(() => this.#recipe());
  }

  /** Draws a video as it is now, or that there is none. What is playing goes on. */
  draw(video) {
    const shape = video ? `${video.id} ${isUnfinished(video) ? "unfinished" : video.state}` : "none";
    if (shape !== this.shown) this.#build(video);
    this.shown = shape;
    if (video) this.#update(video);
  }

  /** Scrolls to it, where its picture is out of sight. */
  show() {
    const { top, bottom } = at("screen").getBoundingClientRect();
    const behavior = still.matches ? "auto" : "smooth";
    if (top < 0 || bottom > innerHeight) at("viewer").scrollIntoView({ block: "start", behavior });
  }

  focus() {
    this.show();
    at("viewer-title").focus({ preventScroll: true });
  }

  /** A sentence about an action that did not work. */
  complain(message) {
    Object.assign(at("viewer-error"), { textContent: sentence(message), hidden: false });
  }

  #build(video) {
    const hadFocus = at("viewer-actions").contains(document.activeElement);
    const title = video?.request.prompt ?? "No video yet";
    at("viewer-title").textContent = title;
    at("screen").replaceChildren(...screen(video));
    at("screen").classList.toggle("low", ["failed", "cancelled"].includes(video?.state));
    at("viewer-facts").textContent = video ? `${facts(video)} · ${when(video)}` : "";
    at("viewer-pictures").replaceChildren(...(video ? givenPictures(video).map((image) => linked(video, image)) : []));
    at("viewer-status").textContent = video ? "" : "Say what it shows, and press Make video.";
    at("viewer-error").hidden = !video?.error || video.state === "cancelled";
    at("viewer-error").textContent = video?.error ? sentence(video.error.message) : "";
    at("viewer-progress").hidden = !video || !isUnfinished(video);
    at("viewer-actions").replaceChildren(...(video ? this.#actions(video) : []));
    Object.assign(at("recipe"), { hidden: !video, open: false });
    if (hadFocus) at("viewer-title").focus({ preventScroll: true });
  }

  #update(video) {
    at("viewer-status").textContent = howFar(video, this.videos.ahead(video));
    at("viewer-progress").value = video.progress;
    const preview = this.videos.previews.get(video.id);
    if (!isUnfinished(video)) return;
    const before = at("screen").firstElementChild;
    if (preview) at("screen").replaceChildren(picture(preview, before));
    else before.textContent = said(video);
  }

  #actions(video) {
    const { again, reuse, remove, cancel } = this.does;
    if (isUnfinished(video)) return [button("Cancel", () => cancel(video)), button("Use these settings", () => reuse(video))];
    const download = Object.assign(document.createElement("a"), {
      href: content(video.id), download: `${video.id}.mp4`, textContent: "Download", className: "button primary",
    });
    return [
      ...(video.state === "completed" ? [download] : []),
      button("Make again with another seed", () => again(video)),
      button("Use these settings", () => reuse(video)),
      button("Delete", () => remove(video), "danger quiet"),
    ];
  }

  async #recipe() {
    const [id] = this.shown.split(" ");
    const { command, python } = await ask("GET", `v1/videos/${id}/recipe`);
    at("recipe-lines").replaceChildren(lines("Command line", command), lines("Python", python));
  }
}

function button(words, act, className = "") {
  const found = Object.assign(document.createElement("button"), { type: "button", textContent: words, className });
  found.onclick = act;
  return found;
}

/** What stands on the screen before a preview, and after it. */
function screen(video) {
  if (video?.state !== "completed") return [Object.assign(document.createElement("p"), { textContent: said(video) })];
  const [width, height] = video.size.split("x").map(Number);
  const player = Object.assign(document.createElement("video"), {
    src: content(video.id), width, height, controls: true, loop: true, muted: true, playsInline: true,
    autoplay: !still.matches, preload: "auto",
  });
  player.setAttribute("aria-label", video.request.prompt);
  return [player];
}

function said(video) {
  if (!video) return "Your video appears here";
  return { queued: "Waiting", running: "The first picture comes with the first step" }[video.state] ?? "No video";
}

/** What was sent for a video, as small pictures: of a clip, its first frame. */
export function givenPictures({ id, request }) {
  return sentFor(request).map(({ field, variant }) => {
    const alt = variant.startsWith("reference_") ? `${label(field)} ${variant.slice("reference_".length)}` : label(field);
    const found = Object.assign(document.createElement("img"), { src: content(id, `${variant}_thumbnail`), alt, loading: "lazy" });
    Object.assign(found.dataset, { name: field, variant });
    return found;
  });
}

function linked(video, image) {
  const link = Object.assign(document.createElement("a"), { href: content(video.id, image.dataset.variant) });
  link.append(image);
  return link;
}

/** The element that is there already, with another picture, so that nothing flickers. */
function picture(source, before) {
  const found = before instanceof HTMLImageElement ? before : document.createElement("img");
  return Object.assign(found, { src: source, alt: "Preview of the video so far" });
}

function lines(title, text) {
  const box = at("lines").content.firstElementChild.cloneNode(true);
  const [heading, copy, code] = ["h3", "button", "pre"].map((each) => box.querySelector(each));
  heading.textContent = title;
  code.textContent = text;
  code.setAttribute("aria-label", title);
  copy.textContent = "Copy";
  copy.setAttribute("aria-label", `Copy: ${title}`);
  copy.onclick = async () => {
    copy.textContent = (await copied(code)) ? "Copied" : "Selected: press Ctrl+C";
    at("announcer").textContent = copy.textContent;
    setTimeout(() => (copy.textContent = "Copy"), 3000);
  };
  return box;
}

/** Browsers have no clipboard for pages that came over plain HTTP from another machine; the selection stays then. */
async function copied(code) {
  getSelection().selectAllChildren(code);
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    return document.execCommand("copy");
  }
}
