/** The form: one field for each parameter that the server names, with its default, limits and help. Knows no video. */

import { ask, Refusal, sentFile, sentFor } from "./api.js";
import { FILE_TYPES, FileField } from "./files.js";
import { LoraField, loraLine } from "./loras.js";
import { duration, hint, label, plural, sentence } from "./words.js";

const BASIC = ["width", "height", "num_frames", "num_inference_steps", "seed"];
const LONG = ["prompt", "negative_prompt"];
const SIZES = ["width", "height"];
const SHAPED = ["image", "last_image", "video", "extend", "mask"];
const FOLLOWS = { width: SHAPED, height: SHAPED, num_frames: ["video"], fps: ["video", "extend"] }; // which file they follow
const BELONGS = { strength: ["video"], conditioning_scale: ["video", "reference_images"] }; // without which file they say nothing
const DRAFT = "mutoscope draft"; // of this tab alone: prompts are nobody else's business
const EXAMPLES = { known: "a red circle moving right on a black background", any: "A cat walks through high grass" };

const at = (id) => document.getElementById(id);

export class AskForm {
  /** `asked(video)` is called with each video that the server took. */
  constructor(models, asked) {
    Object.assign(this, { models, asked });
    this.form = at("ask");
    this.fields = new Map();
    this.files = new Map();
    this.#offerModels();
    this.#restore();
    this.form.onsubmit = (event) => this.#submit(event);
    this.form.oninput = () => this.#edited();
    document.onpaste = (event) => this.#paste(event);
    this.form.onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    };
  }

  /** Takes the values of a video that was made before, and its files, which the server has. */
  async fill({ id, model, request }) {
    if (this.models.some((each) => each.id === model)) this.#show(model);
    const sent = await Promise.all(sentFor(request).map(async ({ field, variant }) => [field, await sentFile(id, variant)]));
    for (const [name, field] of this.files) field.take(sent.filter(([of]) => of === name).map(([, file]) => file));
    for (const [name, field] of this.fields) {
      const value = request[name];
      field.input.value = value === undefined ? field.standard : asText(value);
    }
    this.#clearErrors();
    this.#edited();
    const lost = Object.keys(request).filter((name) => !this.fields.has(name) && !this.files.has(name));
    if (lost.length) showError(at("ask-error"), `This model takes no ${lost.map(label).join(", ")} now; the rest was taken over.`);
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
    const [files, others] = [true, false].map((yes) => model.parameters.filter(({ type }) => FILE_TYPES.includes(type) === yes));
    this.fields = new Map(others.map((each) => [each.name, makeField(each, () => this.#edited())]));
    const before = this.files;
    this.files = new Map(files.map((each) => [each.name, new FileField(each, () => this.#edited())]));
    const { input } = this.fields.get("prompt");
    input.placeholder = `For example: ${model.understands ? EXAMPLES.known : EXAMPLES.any}`;
    for (const [name, value] of Object.entries(values)) if (this.fields.has(name)) this.fields.get(name).input.value = value;
    const rest = [...this.fields.keys()].filter((name) => name !== "prompt" && !BASIC.includes(name) && !(name in BELONGS));
    this.#place("prompt-place", ["prompt"]);
    const given = model.parameters.map(({ name }) => this.files.get(name) ?? (name in BELONGS && this.fields.get(name)));
    at("pictures").replaceChildren(...given.filter(Boolean).map(({ box }) => box));
    this.#place("basic", BASIC);
    this.#place("advanced", rest);
    for (const [name, field] of this.files) field.take(before.get(name)?.files ?? []);
    this.#edited();
  }

  #place(id, names) {
    const found = names.map((name) => this.fields.get(name)?.box).filter(Boolean);
    at(id).replaceChildren(...found);
  }

  /** What differs from the defaults; the rest is the server's to decide. */
  #values() {
    const changed = [...this.fields].filter(([, field]) => isChanged(field) && !field.box.hidden);
    return Object.fromEntries(changed.map(([name, { input }]) => [name, input.value]));
  }

  #changedIn(place) {
    return [...this.fields.values()].filter((field) => at(place).contains(field.box) && isChanged(field)).length;
  }

  /** The first free place, or the one where the keyboard is. Text is for the other fields. */
  #paste(event) {
    const [file] = event.clipboardData.files;
    const fields = [...this.files.values()].filter((each) => file && each.takes(file));
    const place = fields.find(({ box }) => box.contains(document.activeElement)) ?? fields.find(({ files }) => !files.length) ?? fields[0];
    if (!file || !place || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    place.add([file]);
  }

  #has(files) {
    return files.some((name) => this.files.get(name)?.files.length);
  }

  /** With a picture or clip, what nobody says follows from it: the shape, or the length and the rate. */
  #leaveOpen() {
    for (const [name, files] of Object.entries(FOLLOWS)) {
      const field = this.fields.get(name);
      const open = this.#has(files);
      const standard = open ? "" : asText(field.parameter.default);
      if (!isChanged(field)) field.input.value = standard;
      field.input.placeholder = standard ? "" : "automatic";
      setStandard(field, standard);
    }
  }

  #edited() {
    this.#leaveOpen();
    for (const [name, files] of Object.entries(BELONGS)) if (this.fields.has(name)) this.fields.get(name).box.hidden = !this.#has(files);
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
    const size = SIZES.some(value) ? `${SIZES.map((name) => value(name) || "automatic").join(" × ")} pixels` : `As the ${this.#has(["video", "extend"]) ? "video" : "picture"} is shaped`;
    return `${size}, ${length}${plural(value("num_inference_steps"), "step")}`;
  }

  async #submit(event) {
    event.preventDefault();
    const button = this.form.querySelector("[type=submit]");
    if (button.ariaDisabled === "true") return;
    this.#clearErrors();
    const form = new FormData();
    const values = { prompt: this.fields.get("prompt").input.value, model: at("ask-model").value, ...this.#values() };
    for (const [name, value] of Object.entries(values)) {
      const isLoras = this.fields.get(name) instanceof LoraField;
      (isLoras ? value.split("\n") : [value]).forEach((each) => form.append(name, each));
    }
    for (const [name, { files }] of this.files) files.forEach((file) => form.append(name, file));
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
    const field = this.fields.get(param) ?? this.files.get(param);
    if (!field || field.box.hidden) return showError(at("ask-error"), sentence(message));
    at("more").open ||= at("advanced").contains(field.box);
    showError(field.error, sentence(message));
    field.input.ariaInvalid = "true";
    field.input.focus();
  }

  #clearErrors() {
    at("ask-error").hidden = true;
    for (const { input, error } of [...this.fields.values(), ...this.files.values()]) {
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

/** As a form has it: nothing for what is left to the server, and a line for each LoRA. */
function asText(value) {
  if (!Array.isArray(value)) return value === null ? "" : String(value);
  return value.some((each) => each.path) ? value.map(loraLine).join("\n") : value.join(",");
}

/** "24000/1001", "8" or "12.5" as a number. */
function rate(text) {
  const [over, under = 1] = String(text).split("/").map(Number);
  return over / under;
}

function makeField(parameter, edited) {
  if (parameter.type === "loras") {
    const field = new LoraField(parameter, edited);
    setStandard(field, "");
    return field;
  }
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
