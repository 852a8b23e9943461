/** The videos as this page knows them: listed once, and kept up to date by the server's events. Draws nothing. */

import { ask, parse } from "./api.js";

const UNFINISHED = ["queued", "running"];
const FINISHED = ["completed", "failed", "cancelled"];
const RETRY_MS = 2000;
const PAGE = 24;

export const isUnfinished = (video) => UNFINISHED.includes(video.state);

/**
 * `changed(id)` is called after each change of one video, or without an id of all; `connected(yes)` as the connection
 * comes and goes. `looked()` gives the id of a video that stays known, however old it is.
 */
export class Videos {
  constructor({ changed, connected, looked }) {
    Object.assign(this, { changed, connected, looked });
    this.known = new Map();
    this.previews = new Map();
    this.older = null; // the id after which the gallery goes on
    this.listed = Promise.resolve();
    document.addEventListener("visibilitychange", () => this.#spare());
  }

  /** Begins to listen. The first event is a "reset", so the list follows by itself. */
  open() {
    this.#close();
    this.wanted = true;
    const source = (this.source = new EventSource("v1/events")); // sends Last-Event-ID when it connects again
    const on = (kind, act) => source.addEventListener(kind, ({ data }) => {
      this.listed = this.listed.then(() => act(parse(data)));
    });
    on("reset", () => this.list());
    on("video", (video) => this.put(video));
    on("progress", (news) => this.#merge(news));
    on("preview", ({ id, image }) => this.#preview(id, image));
    on("deleted", ({ id }) => this.forget(id));
    source.onopen = () => this.connected(true);
    source.onerror = () => {
      if (source !== this.source) return;
      this.connected(false);
      if (source.readyState === EventSource.CLOSED) this.#openLater();
    };
  }

  /** Listens no more, until `open`. */
  end() {
    this.wanted = false;
    this.#close();
  }

  /** Takes everything anew: a server that was started again knows no old events. */
  async list() {
    try {
      const [waiting, finished] = await Promise.all([this.#unfinished(), this.#page(null)]);
      this.known = new Map([...waiting, ...finished].map((video) => [video.id, video]));
      await this.#find(this.looked());
      this.changed();
    } catch {
      this.#close();
      this.#openLater();
    }
  }

  async more() {
    for (const video of await this.#page(this.older)) this.known.set(video.id, video);
    this.changed();
  }

  /** A video by its id, from the server where it is not known yet; undefined where there is none. */
  async find(id) {
    await this.listed;
    await this.#find(id);
    return this.known.get(id);
  }

  get(id) {
    return this.known.get(id);
  }

  /** A video that the server just took. Events may have told more of it by now than the answer does. */
  add(video) {
    if (!this.known.has(video.id)) this.put(video);
  }

  put(video) {
    this.known.set(video.id, video);
    if (!isUnfinished(video)) this.previews.delete(video.id);
    this.changed(video.id);
  }

  forget(id) {
    this.known.delete(id);
    this.previews.delete(id);
    this.changed(id);
  }

  /** In the order in which they are made. */
  get unfinished() {
    const rank = ({ state, attempts }) => (state === "running" ? -1 : attempts);
    return [...this.known.values()].filter(isUnfinished)
      .sort((a, b) => rank(a) - rank(b) || a.created_at - b.created_at);
  }

  /** The newest first. */
  get finished() {
    return [...this.known.values()].filter((video) => !isUnfinished(video))
      .sort((a, b) => b.created_at - a.created_at || b.finished_at - a.finished_at);
  }

  /** How many are made before it, where it waits. */
  ahead({ id }) {
    return this.unfinished.findIndex((video) => video.id === id);
  }

  async #find(id) {
    if (!id || this.known.has(id)) return;
    const video = await ask("GET", `v1/videos/${encodeURIComponent(id)}`).catch(() => null);
    if (video) this.known.set(id, video);
  }

  #merge(news) {
    const video = this.known.get(news.id);
    if (video?.state === "running") this.put({ ...video, ...news });
  }

  #preview(id, image) {
    if (this.known.get(id)?.state !== "running") return;
    this.previews.set(id, image);
    this.changed(id);
  }

  async #unfinished() {
    const found = [];
    let answer = { has_more: true, last_id: null };
    while (answer.has_more) {
      const after = answer.last_id ? `&after=${answer.last_id}` : "";
      answer = await ask("GET", `v1/videos?state=${UNFINISHED}&order=asc&limit=100${after}`);
      found.push(...answer.data);
    }
    return found;
  }

  async #page(after) {
    const rest = after ? `&after=${after}` : "";
    const answer = await ask("GET", `v1/videos?state=${FINISHED}&limit=${PAGE}${rest}`);
    this.older = answer.has_more ? answer.last_id : null;
    return answer.data;
  }

  #close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  /** Asks first: an `EventSource` does not say that the token is another one now. */
  #openLater() {
    clearTimeout(this.timer);
    const tryAgain = () => ask("GET", "v1/queue").then(() => this.open(), () => this.#openLater());
    if (this.wanted) this.timer = setTimeout(tryAgain, RETRY_MS);
  }

  /** A browser has six connections to a server: tabs that nobody sees, and that wait for nothing, keep none. */
  #spare() {
    if (document.hidden && this.unfinished.length === 0) this.#close();
    else if (!document.hidden && this.wanted && !this.source) this.open();
  }
}
