/** The fields for files: pictures and clips are chosen, dropped or pasted, shown small, and removed again. Knows no server. */

import { hint, label } from "./words.js";

export const FILE_TYPES = ["picture", "clip", "clip_or_picture", "pictures"];
const ACCEPTED = { picture: "image/*,video/*", clip: "video/*", clip_or_picture: "image/*,video/*", pictures: "image/*" };
const HEIGHT = 192; // pixels of what is shown, twice what most screens need

export class FileField {
  /** `edited()` is called whenever there are other files, or none. */
  constructor(parameter, edited) {
    const box = document.getElementById("file-field").content.firstElementChild.cloneNode(true);
    const [title, input, chosen, previews, remove, error, about] =
      ["label", "input", ".chosen", ".previews", "button", ".error", ".hint"].map((each) => box.querySelector(each));
    Object.assign(this, { parameter, edited, box, input, chosen, previews, error });
    const [id, words] = [`ask-${parameter.name}`, label(parameter.name)];
    const several = parameter.type === "pictures";
    Object.assign(input, { id, name: parameter.name, required: parameter.required, multiple: several, accept: ACCEPTED[parameter.type] });
    Object.assign(title, { htmlFor: id, textContent: words });
    error.id = `${id}-error`;
    const how = several ? "Choose files, drop them here or paste them." : "Choose a file, drop it here or paste it.";
    Object.assign(about, { id: `${id}-help`, textContent: `${hint(parameter)} ${how}` });
    input.setAttribute("aria-describedby", `${error.id} ${about.id}`);
    remove.setAttribute("aria-label", `Remove: ${words}`);
    remove.onclick = () => {
      this.take([]);
      input.focus();
    };
    input.onchange = () => this.#changed();
    box.ondragover = (event) => this.#over(event, event.dataTransfer.types.includes("Files"));
    box.ondragleave = (event) => this.#over(event, false);
    box.ondrop = (event) => {
      this.#over(event, false);
      event.preventDefault();
      this.add([...event.dataTransfer.files]);
    };
  }

  get files() {
    return [...this.input.files];
  }

  /** Whether it may be given this file; a clip is told from a picture, as far as its type is known. */
  takes(file) {
    return this.parameter.type === "pictures" ? !file.type.startsWith("video/")
      : this.parameter.type !== "clip" || !file.type.startsWith("image/");
  }

  /** Has these files from now on: those of before too, where there may be several. */
  add(files) {
    if (files.length) this.take(this.input.multiple ? [...this.files, ...files] : files.slice(0, 1));
  }

  /** Has these files from now on, or none. */
  take(files) {
    const data = new DataTransfer();
    files.forEach((file) => data.items.add(file));
    this.input.files = data.files;
    this.#changed();
  }

  #over(event, yes) {
    if (yes) event.preventDefault(); // says that it may be dropped here
    this.box.classList.toggle("over", yes);
  }

  #changed() {
    const words = label(this.parameter.name);
    this.chosen.hidden = !this.files.length;
    this.previews.replaceChildren(...this.files.map((file, place) => {
      const canvas = Object.assign(document.createElement("canvas"), { role: "img", hidden: true });
      canvas.ariaLabel = `Preview: ${words}${this.files.length > 1 ? ` ${place + 1}` : ""}`;
      draw(file, canvas, this.parameter.type === "picture");
      return canvas;
    }));
    this.edited();
  }
}

/**
 * Small, and turned as its EXIF data says. Where a clip stands for a picture, its last frame is meant, and otherwise its first is shown.
 * What a browser cannot show, such as TIFF, the server may still read.
 */
async function draw(file, canvas, last) {
  const options = { resizeHeight: HEIGHT, resizeQuality: "medium" };
  const picture = () => createImageBitmap(file, options);
  const frame = () => (/^(video\/|$)/.test(file.type) ? frameOf(file, last, options) : null);
  const small = await picture().catch(frame).catch(() => null);
  if (!small) return;
  Object.assign(canvas, { width: small.width, height: small.height, hidden: false });
  canvas.getContext("2d").drawImage(small, 0, 0);
}

async function frameOf(file, last, options) {
  const video = Object.assign(document.createElement("video"), { muted: true, preload: "auto", src: URL.createObjectURL(file) });
  try {
    await new Promise((found, failed) => Object.assign(video, { onloadeddata: found, onerror: failed }));
    if (last) {
      await new Promise((shown) => {
        video.requestVideoFrameCallback(shown); // "seeked" may come before the frame does
        video.currentTime = video.duration;
      });
    }
    return await createImageBitmap(video, options);
  } finally {
    URL.revokeObjectURL(video.src);
  }
}
