/** The fields for pictures: a file is chosen, dropped or pasted, shown small, and removed again. Knows no server. */

import { hint, label } from "./words.js";

const HEIGHT = 192; // pixels of what is shown, twice what most screens need

export class PictureField {
  /** `edited()` is called whenever there is another picture, or none. */
  constructor(parameter, edited) {
    const box = document.getElementById("picture-field").content.firstElementChild.cloneNode(true);
    const [title, input, chosen, preview, remove, error, about] =
      ["label", "input", ".chosen", "canvas", "button", ".error", ".hint"].map((each) => box.querySelector(each));
    Object.assign(this, { parameter, edited, box, input, chosen, preview, error });
    const [id, words] = [`ask-${parameter.name}`, label(parameter.name)];
    Object.assign(input, { id, name: parameter.name, required: parameter.required });
    Object.assign(title, { htmlFor: id, textContent: words });
    error.id = `${id}-error`;
    Object.assign(about, { id: `${id}-help`, textContent: `${hint(parameter)} Choose a file, drop it here or paste it.` });
    input.setAttribute("aria-describedby", `${error.id} ${about.id}`);
    preview.setAttribute("aria-label", `Preview: ${words}`);
    remove.setAttribute("aria-label", `Remove: ${words}`);
    remove.onclick = () => {
      this.take(null);
      input.focus();
    };
    input.onchange = () => this.#changed();
    box.ondragover = (event) => this.#over(event, event.dataTransfer.types.includes("Files"));
    box.ondragleave = (event) => this.#over(event, false);
    box.ondrop = (event) => {
      this.#over(event, false);
      event.preventDefault();
      if (event.dataTransfer.files.length) this.take(event.dataTransfer.files[0]);
    };
  }

  /** The file, or undefined. */
  get file() {
    return this.input.files[0];
  }

  /** Has this file from now on, or none. */
  take(file) {
    const files = new DataTransfer();
    if (file) files.items.add(file);
    this.input.files = files.files;
    this.#changed();
  }

  #over(event, yes) {
    if (yes) event.preventDefault(); // says that it may be dropped here
    this.box.classList.toggle("over", yes);
  }

  #changed() {
    this.chosen.hidden = !this.file;
    this.preview.hidden = true;
    if (this.file) this.#draw(this.file);
    this.edited();
  }

  /** Small, and turned as its EXIF data says. What a browser cannot show, such as TIFF, the server may still read. */
  async #draw(file) {
    const small = await createImageBitmap(file, { resizeHeight: HEIGHT, resizeQuality: "medium" }).catch(() => null);
    if (!small || file !== this.file) return;
    Object.assign(this.preview, { width: small.width, height: small.height, hidden: false });
    this.preview.getContext("2d").drawImage(small, 0, 0);
  }
}
