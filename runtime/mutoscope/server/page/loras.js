/** The field for LoRAs: any number of them, each with its strength. Its value is text, a line for each. Knows no server.
 *
 * A row that comes from a video has the hash of its file, until another file is chosen.
 */

import { hint, label } from "./words.js";

const HASH = " sha256:";

/** The line of a LoRA, as a form has it. */
export function loraLine({ path, strength = 1, sha256 }) {
  return `${path}:${strength}${sha256 ? HASH + sha256 : ""}`;
}

export class LoraField {
  /** `edited()` is called whenever there are others, or others' strengths. */
  constructor(parameter, edited) {
    const box = document.getElementById("loras-field").content.firstElementChild.cloneNode(true);
    const [title, list, add, error, help, about, reset] =
      [".title", "ul", ".add", ".error", ".hint", ".hint span", ".reset"].map((each) => box.querySelector(each));
    Object.assign(this, { parameter, edited, box, list, add, error, reset });
    const id = `ask-${parameter.name}`;
    Object.assign(box, { id });
    Object.assign(title, { id: `${id}-title`, textContent: label(parameter.name) });
    Object.assign(error, { id: `${id}-error` });
    Object.assign(help, { id: `${id}-help` });
    about.textContent = hint(parameter);
    box.setAttribute("aria-labelledby", title.id);
    box.setAttribute("aria-describedby", `${error.id} ${help.id}`);
    add.onclick = () => {
      const used = [...list.querySelectorAll("select")].map(({ value }) => value);
      this.#row(parameter.choices.find((name) => !used.includes(name)) ?? parameter.choices[0]).querySelector("select").focus();
      edited();
    };
    reset.onclick = () => {
      this.value = "";
      add.focus();
      edited();
    };
  }

  /** What the form reads and writes, as of an element. */
  get input() {
    return this;
  }

  get value() {
    return [...this.list.children].map((row) => {
      const [path, strength] = [row.querySelector("select").value, row.querySelector("input").value || 1];
      return loraLine({ path, strength, sha256: row.dataset.sha256 });
    }).join("\n");
  }

  set value(text) {
    this.list.replaceChildren();
    for (const line of text.split("\n").filter(Boolean)) {
      const [named, sha256] = line.split(HASH);
      const colon = named.lastIndexOf(":");
      this.#row(named.slice(0, colon), named.slice(colon + 1), sha256);
    }
  }

  set ariaInvalid(yes) {
    this.box.classList.toggle("invalid", yes === "true");
  }

  removeAttribute() {
    this.box.classList.remove("invalid");
  }

  focus() {
    (this.list.querySelector("select") ?? this.add).focus();
  }

  /** A name that the server does not offer any more stays: the server says so in words. */
  #row(name, strength = "1", sha256 = "") {
    const row = document.getElementById("lora-row").content.firstElementChild.cloneNode(true);
    const [select, input, remove] = ["select", "input", "button"].map((each) => row.querySelector(each));
    select.append(...[...new Set([...this.parameter.choices, name])].map((each) => new Option(each)));
    select.value = name;
    row.dataset.sha256 = sha256;
    select.oninput = () => { row.dataset.sha256 = ""; };
    input.value = strength;
    remove.onclick = () => {
      row.remove();
      this.add.focus();
      this.edited();
    };
    this.list.append(row);
    return row;
  }
}
