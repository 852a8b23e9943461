/** The form: one field for each parameter that the server names, with its default, limits and help. Knows no video. */

import { ask, Refusal, sentPicture } from "./api.js";
import { PictureField } from "./pictures.js";
import { duration, hint, label, plural, sentence } from "./words.js";

const BASIC = ["width", "height", "num_frames", "num_inference_steps", "seed"];
const LONG = ["prompt", "negative_prompt"];
const SIZES = ["width", "height"];
const DRAFT = "mutoscope draft"; // of this tab alone: prompts are nobody else's business
const EXAMPLES = { known: "a red circle moving right on a black background", any: "A cat walks through high grass" };

const at = (id) => document.getElementById(id);

export class AskForm {
  /** `asked(video)` is called with each video that the server took. */
  constructor(models, asked) {
    Object.assign(this, { models, asked });
    this.form = at("ask");
    this.fields = new Map();
    this.pictures = new Map();
    this.#offerModels();
    this.#restore();
    this.form.onsubmit = (event) => this.#submit(event);
    this.form.oninput = () => this.#edited();
    document.onpaste = (event) => this.#paste(event);
    this.form.onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    };
  }

  /** Takes the values of a video that was made before, and its pictures, which the server has. */
  async fill({ id, model, request }) {
    if (this.models.some((each) => each.id === model)) this.#show(model);
    for (const [name, field] of this.pictures) field.take(request[name] ? await sentPicture(id, name) : null);
    for (const [name, field] of this.fields) {
      const value = request[name];
      field.input.value = value === undefined ? field.standard : asText(value);
    }
    this.#clearErrors();
    this.#edited();
    at("more").open ||= this.#changedIn("advanced") > 0;
    this.fields.get("prompt").input.focus();
  }

  #offerModels() {
    const select = at("ask-model");
    select.replaceChildren(...this.models.map(({ id }) => new Option(id)));
    select.onchange = () => this.#show(select.value, this.#values());
    at("model-field").hidden = this.models.length === 1;
  }

  #restore() {
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
    const known = this.models.find(({ id }) => id === draft.model) ?? this.models.find((model) => model.default);
    this.#show(known.id, draft.values);
    at("more").open = this.#changedIn("advanced") > 0;
  }

  /** Fields for one model; values that differed from the defaults of another stay, where it has the parameter. */
  #show(id, values = {}) {
    const model = this.models.find((each) => each.id === id);
    at("ask-model").value = id;
    at("understands").hidden = !model.understands;
    at("understands").querySelector("p").textContent = model.understands ?? "";
    const [pictures, others] = [true, false].map((yes) => model.parameters.filter(({ type }) => (type === "picture") === yes));
    this.fields = new Map(others.map((each) => [each.name, makeField(each, () => this.#edited())]));
    const before = this.pictures;
    this.pictures = new Map(pictures.map((each) => [each.name, new PictureField(each, () => this.#edited())]));
    const { input } = this.fields.get("prompt");
    input.placeholder = `For example: ${model.understands ? EXAMPLES.known : EXAMPLES.any}`;
    for (const [name, value] of Object.entries(values)) if (this.fields.has(name)) this.fields.get(name).input.value = value;
    const rest = [...this.fields.keys()].filter((name) => name !== "prompt" && !BASIC.includes(name));
    this.#place("prompt-place", ["prompt"]);
    at("pictures").replaceChildren(...[...this.pictures.values()].map(({ box }) => box));
    this.#place("basic", BASIC);
    this.#place("advanced", rest);
    for (const [name, field] of this.pictures) field.take(before.get(name)?.file);
    this.#edited();
  }

  #place(id, names) {
    const found = names.map((name) => this.fields.get(name)?.box).filter(Boolean);
    at(id).replaceChildren(...found);
  }

  /** What differs from the defaults; the rest is the server's to decide. */
  #values() {
    const changed = [...this.fields].filter(([, field]) => isChanged(field));
    return Object.fromEntries(changed.map(([name, { input }]) => [name, input.value]));
  }

  #changedIn(place) {
    return [...this.fields.values()].filter((field) => at(place).contains(field.box) && isChanged(field)).length;
  }

  /** The first free place, or the one where the keyboard is. Text is for the other fields. */
  #paste(event) {
    const [file] = event.clipboardData.files;
    const fields = [...this.pictures.values()];
    const place = fields.find(({ box }) => box.contains(document.activeElement)) ?? fields.find((each) => !each.file) ?? fields[0];
    if (!file || !place || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    place.take(file);
  }

  /** With a picture, a size that nobody says is that of the picture's shape. */
  #leaveSizesOpen() {
    const open = [...this.pictures.values()].some(({ file }) => file);
    for (const field of SIZES.map((name) => this.fields.get(name))) {
      const standard = open ? "" : asText(field.parameter.default);
      if (!isChanged(field)) field.input.value = standard;
      field.input.placeholder = standard ? "" : "automatic";
      setStandard(field, standard);
    }
  }

  #edited() {
    this.#leaveSizesOpen();
    sessionStorage.setItem(DRAFT, JSON.stringify({ model: at("ask-model").value, values: this.#values() }));
    for (const field of this.fields.values()) field.reset.hidden = !isChanged(field) || field.parameter.required;
    const changed = this.#changedIn("advanced");
    at("more-count").textContent = changed ? `(${changed} changed)` : "";
    at("ask-summary").textContent = this.#summary();
  }

  #summary() {
    const value = (name) => this.fields.get(name)?.input.value;
    const seconds = Number(value("num_frames")) / rate(value("fps"));
    const length = Number.isFinite(seconds) && seconds > 0 ? `${duration(seconds)} long, ` : "";
    const size = SIZES.some(value) ? `${SIZES.map((name) => value(name) || "automatic").join(" × ")} pixels` : "As the picture is shaped";
    return `${size}, ${length}${plural(value("num_inference_steps"), "step")}`;
  }

  async #submit(event) {
    event.preventDefault();
    const button = this.form.querySelector("[type=submit]");
    if (button.ariaDisabled === "true") return;
    this.#clearErrors();
    const form = new FormData();
    const values = { prompt: this.fields.get("prompt").input.value, model: at("ask-model").value, ...this.#values() };
    Object.entries(values).forEach(([name, value]) => form.set(name, value));
    for (const [name, { file }] of this.pictures) if (file) form.set(name, file);
    button.ariaDisabled = "true"; // stays in reach of the keyboard, unlike `disabled`
    try {
      this.asked(await ask("POST", "v1/videos", form));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#refused(error);
    } finally {
      button.ariaDisabled = "false";
    }
  }

  /** The sentence stands next to the field that it is about, and the keyboard goes there. */
  #refused({ message, param }) {
    const field = this.fields.get(param) ?? this.pictures.get(param);
    if (!field) return showError(at("ask-error"), sentence(message));
    at("more").open ||= at("advanced").contains(field.box);
    showError(field.error, sentence(message));
    field.input.ariaInvalid = "true";
    field.input.focus();
  }

  #clearErrors() {
    at("ask-error").hidden = true;
    for (const { input, error } of [...this.fields.values(), ...this.pictures.values()]) {
      error.hidden = true;
      input.removeAttribute("aria-invalid");
    }
  }
}

function showError(place, words) {
  place.textContent = words;
  place.hidden = false;
}

const isChanged = ({ input, standard }) => input.value !== standard;

/** As a form has it: nothing for what is left to the server. */
function asText(value) {
  return value === null ? "" : Array.isArray(value) ? value.join(",") : String(value);
}

/** "24000/1001", "8" or "12.5" as a number. */
function rate(text) {
  const [over, under = 1] = String(text).split("/").map(Number);
  return over / under;
}

function makeField(parameter, edited) {
  const box = at("field").content.firstElementChild.cloneNode(true);
  const [title, error, help, about, reset] = ["label", ".error", ".hint", ".hint span", ".reset"].map((each) => box.querySelector(each));
  const input = makeInput(parameter);
  const id = `ask-${parameter.name}`;
  Object.assign(input, { id, name: parameter.name, required: parameter.required });
  Object.assign(title, { htmlFor: id, textContent: label(parameter.name) });
  Object.assign(error, { id: `${id}-error` });
  Object.assign(help, { id: `${id}-help` });
  about.textContent = hint(parameter);
  input.setAttribute("aria-describedby", `${error.id} ${help.id}`);
  const field = { parameter, box, input, error, reset };
  setStandard(field, input.value);
  reset.onclick = () => {
    input.value = field.standard;
    input.focus();
    edited();
  };
  title.after(input);
  box.classList.toggle("wide", LONG.includes(parameter.name) || parameter.type === "levels");
  return field;
}

/** What a field has where nobody says otherwise. */
function setStandard(field, standard) {
  field.standard = standard;
  field.reset.textContent = standard ? `Back to ${standard}` : "Clear";
  field.reset.setAttribute("aria-label", `${field.reset.textContent}: ${label(field.parameter.name)}`);
}

function makeInput({ name, type, default: standard, minimum, maximum, step, choices }) {
  if (type === "choice") {
    const select = document.createElement("select");
    select.append(...choices.map((each) => new Option(each, each, false, each === standard)));
    return select;
  }
  const input = document.createElement(LONG.includes(name) ? "textarea" : "input");
  input.value = asText(standard);
  if (LONG.includes(name)) return Object.assign(input, { rows: name === "prompt" ? 4 : 2 });
  input.placeholder = name === "seed" ? "random" : standard === null ? "automatic" : "";
  if (type === "number" || (type === "integer" && Number.isSafeInteger(maximum))) {
    Object.assign(input, { type: "number", min: minimum ?? "", max: maximum ?? "", step: step ?? "any" });
    input.inputMode = type === "integer" ? "numeric" : "decimal";
  } else {
    Object.assign(input, { type: "text", inputMode: type === "integer" ? "numeric" : "text", autocomplete: "off" });
  }
  return input;
}
