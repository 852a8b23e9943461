/** The queue and the gallery. Their elements are kept from one drawing to the next, so that focus stays where it is. */

import { ask, content } from "./api.js";
import { givenPictures } from "./viewer.js";
import { howFar, sentence, shortFacts } from "./words.js";

const STANDS_MS = 2000;
const ON_CARDS = ["image", "last_image", "video", "extend"]; // there is no place for more
const at = (id) => document.getElementById(id);

export class Shelf {
  constructor(videos, { select, cancel }) {
    Object.assign(this, { videos, select, cancel });
    this.rows = new Map();
    this.cards = new Map();
    at("older").onclick = () => this.#older();
  }

  /** Draws both; `selected` is the id of the video that is looked at. */
  draw(selected) {
    const { unfinished, finished } = this.videos;
    const focused = document.activeElement;
    this.selected = selected;
    at("queue").hidden = unfinished.length === 0;
    this.#watch(unfinished[0]?.state === "queued");
    keep(at("queue-list"), this.rows, unfinished, (video) => this.#row(video));
    keep(at("gallery-list"), this.cards, finished, (video) => this.#card(video));
    for (const video of unfinished) this.#update(this.rows.get(video.id), video);
    for (const [id, item] of [...this.rows, ...this.cards]) {
      item.querySelector("button").ariaCurrent = id === selected ? "true" : "false";
    }
    if (!focused.isConnected) at("viewer-title").focus({ preventScroll: true }); // its video left the list
    at("gallery-empty").hidden = finished.length > 0;
    at("older").hidden = !this.videos.older;
  }

  /** Says why nothing is made, where a video waits and none runs for a while. */
  #watch(stands) {
    clearTimeout(this.timer);
    if (!stands) at("queue-waits").hidden = true;
    else this.timer = setTimeout(() => this.#explain(), STANDS_MS);
  }

  async #explain() {
    const { waits_because: reason } = await ask("GET", "v1/queue").catch(() => ({}));
    Object.assign(at("queue-waits"), { hidden: !reason, textContent: reason ? sentence(`nothing is made now: ${reason}`) : "" });
    this.#watch(this.videos.unfinished[0]?.state === "queued");
  }

  #row(video) {
    const item = at("queue-row").content.firstElementChild.cloneNode(true);
    const [open, cancel] = item.querySelectorAll("button");
    item.querySelector(".what").textContent = video.request.prompt;
    item.querySelector("progress").ariaLabel = `Progress: ${video.request.prompt}`;
    cancel.ariaLabel = `Cancel: ${video.request.prompt}`;
    open.onclick = () => this.select(video.id);
    cancel.onclick = () => this.cancel(video);
    return item;
  }

  #update(item, video) {
    item.querySelector(".how-far").textContent = howFar(video, this.videos.ahead(video));
    Object.assign(item.querySelector("progress"), { value: video.progress, hidden: video.state !== "running" });
  }

  #card(video) {
    const item = at("card").content.firstElementChild.cloneNode(true);
    const open = item.querySelector("button");
    item.querySelector(".what").textContent = video.request.prompt;
    item.querySelector(".meta").textContent = video.state === "completed" ? shortFacts(video) : howFar(video);
    const begun = givenPictures(video).filter(({ dataset }) => ON_CARDS.includes(dataset.name));
    item.querySelector(".picture").append(thumbnail(video), ...begun);
    open.onclick = () => this.select(video.id);
    return item;
  }

  async #older() {
    const before = new Set(this.cards.keys());
    await this.videos.more();
    this.draw(this.selected);
    const first = [...this.cards.keys()].find((id) => !before.has(id));
    this.cards.get(first)?.querySelector("button").focus();
  }
}

/** Gives a list one element for each video, in their order, and makes only those that are new. */
function keep(list, elements, videos, make) {
  const wanted = new Set(videos.map(({ id }) => id));
  for (const [id, element] of elements) {
    if (wanted.has(id)) continue;
    element.remove();
    elements.delete(id);
  }
  videos.forEach((video, place) => {
    if (!elements.has(video.id)) elements.set(video.id, make(video));
    const element = elements.get(video.id);
    if (list.children[place] !== element) list.insertBefore(element, list.children[place] ?? null);
  });
}

function thumbnail(video) {
  if (video.state !== "completed") return Object.assign(document.createElement("span"), { textContent: "No video" });
  return Object.assign(document.createElement("img"), { src: content(video.id, "thumbnail"), alt: "", loading: "lazy" });
}
